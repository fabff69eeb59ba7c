//! A deterministic tokenizer that costs nothing.
//!
//! A token is up to four bytes of text, and a space or a line feed always opens a new one. So text tokenises the same
//! wherever it stands, and a reply (whose words open with a space) sent back as part of the next prompt gives the very
//! tokens that were generated: the prefix cache of a conversation behaves as with a real tokenizer.

/// Most bytes of text in one token.
pub const MAX_TOKEN_BYTES: usize = 4;

/// Opens a message; the role follows.
pub const TURN_START: u32 = special(0);
/// Closes a message.
pub const TURN_END: u32 = special(1);

/// Fills the unused bytes of a token: it occurs in no UTF-8 text.
const PAD: u8 = 0xFF;
const SPECIAL_NAMES: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

/// Appends the tokens of `text`.
///
/// # Cost
/// O(bytes), no allocation beyond `out`.
pub fn encode(text: &str, out: &mut Vec<u32>) {
    out.reserve(text.len() / MAX_TOKEN_BYTES + 1);
    out.extend(split(text).map(pack));
}

/// How many tokens [`encode`] makes of `text`.
#[must_use]
pub fn count(text: &str) -> u64 {
    split(text).map(|_| 1).sum()
}

/// The bytes of each token.
fn split(text: &str) -> impl Iterator<Item = &[u8]> {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let most = rest.len().min(MAX_TOKEN_BYTES);
        let end = (1..most).find(|&i| matches!(rest[i], b' ' | b'\n')).unwrap_or(most);
        let (token, after) = rest.split_at(end);
        rest = after;
        (end > 0).then_some(token)
    })
}

/// The text of `tokens`; ids that no text has give replacement characters.
#[must_use]
pub fn decode(tokens: &[u32]) -> String {
    let mut bytes = Vec::with_capacity(tokens.len() * MAX_TOKEN_BYTES);
    for &token in tokens {
        match SPECIAL_NAMES.iter().zip(0..).find(|&(_, i)| special(i) == token) {
            Some((name, _)) => bytes.extend_from_slice(name.as_bytes()),
            None => bytes.extend(token.to_le_bytes().into_iter().take_while(|&b| b != PAD)),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Appends the opening of a message; its content is appended next.
pub fn open_turn(role: &str, out: &mut Vec<u32>) {
    out.push(TURN_START);
    encode(role, out);
    encode("\n", out);
}

/// Appends the end of a message.
pub fn close_turn(out: &mut Vec<u32>) {
    out.push(TURN_END);
    encode("\n", out);
}

/// The token of up to four bytes of text.
#[must_use]
pub(crate) const fn pack(text: &[u8]) -> u32 {
    let mut bytes = [PAD; MAX_TOKEN_BYTES];
    let mut i = 0;
    while i < text.len() && i < MAX_TOKEN_BYTES {
        bytes[i] = text[i];
        i += 1;
    }
    u32::from_le_bytes(bytes)
}

/// Starts with `PAD`, as the token of a text never does.
const fn special(index: u8) -> u32 {
    u32::from_le_bytes([PAD, index, PAD, PAD])
}
