use super::*;

fn pair() -> (Sender, Exchange) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let task = runtime.spawn(std::future::pending::<()>()).abort_handle();
    let (sender, exchange) = channel(HeaderValue::from_static("id"));
    (sender, exchange(task))
}

fn poll(exchange: &Exchange) -> Poll<Result<Part, Error>> {
    exchange.poll_part(&mut Context::from_waker(Waker::noop()))
}

fn head() -> Head {
    Head { status: 200, headers: HeaderMap::new() }
}

fn ready(exchange: &Exchange) -> Part {
    match poll(exchange) {
        Poll::Ready(Ok(part)) => part,
        other => panic!("no part is ready: {other:?}"),
    }
}

#[test]
fn chunks_between_two_polls_leave_together() {
    let (sender, exchange) = pair();
    assert!(poll(&exchange).is_pending());
    sender.head(head(), Bytes::from_static(b"a"));
    sender.update(|state| state.push(Bytes::from_static(b"b")));
    sender.end(Ok(()));
    let part = ready(&exchange);
    assert_eq!(part.body.concat(), b"ab");
    assert!(part.head.is_some() && part.end);
}

#[test]
fn an_error_comes_after_the_bytes_before_it() {
    let (sender, exchange) = pair();
    sender.head(head(), Bytes::from_static(b"a"));
    sender.end(Err(Error::internal("broke")));
    let part = ready(&exchange);
    assert!(!part.end);
    assert!(matches!(poll(&exchange), Poll::Ready(Err(error)) if error.message == "broke"));
}

#[test]
fn a_writer_waits_while_the_reader_is_behind() {
    let (sender, exchange) = pair();
    let mut write = Box::pin(sender.chunk(Bytes::from(vec![0; HELD_BYTES])));
    let mut context = Context::from_waker(Waker::noop());
    assert!(write.as_mut().poll(&mut context).is_pending());
    assert_eq!(ready(&exchange).body.concat().len(), HELD_BYTES);
    assert!(write.as_mut().poll(&mut context).is_ready());
}

#[test]
fn a_task_that_is_gone_ends_the_reply() {
    let (sender, exchange) = pair();
    drop(sender);
    assert!(matches!(poll(&exchange), Poll::Ready(Err(_))));
}
