//! What a template must not do, because its text would differ from Jinja2's without any error.

use std::collections::HashMap;

use minijinja::machinery::ast::{BinOpKind, CallArg, CompareOpKind, Expr, Stmt};

use super::TemplateError;
use super::syntax::{Node, argument, children, walk};

/// Their results are generators in Python: always true, empty when read again, and without a length.
const GENERATORS: [&str; 7] =
    ["items", "map", "reject", "rejectattr", "reverse", "select", "selectattr"];
/// Filters that read a generator to its end, or hand on another.
const READERS: [&str; 10] = [
    "first",
    "items",
    "join",
    "list",
    "map",
    "reject",
    "rejectattr",
    "reverse",
    "select",
    "selectattr",
];
/// `value.items` is the method in Python, whatever the keys are.
const METHODS: [&str; 11] = [
    "clear",
    "copy",
    "fromkeys",
    "get",
    "items",
    "keys",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "values",
];
/// Names that Jinja2 gives a meaning of their own.
const NAMES: [&str; 6] = ["cycler", "joiner", "kwargs", "lipsum", "self", "varargs"];

/// Where an expression stands.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Written out as it is.
    Emitted,
    /// Read from start to end, once.
    Read,
    /// Called.
    Called,
    Other,
}

/// Passes a template that can be rendered here.
///
/// # Errors
/// [`TemplateError::Syntax`] with what stands in the way.
pub(super) fn check(template: &Stmt<'_>) -> Result<(), TemplateError> {
    check_defaults(template)?;
    visit(Node::Stmt(template), Place::Other)
}

/// A macro's default stands in for an argument that is given without a value, but not in Jinja2.
fn check_defaults(template: &Stmt<'_>) -> Result<(), TemplateError> {
    let mut macros = HashMap::new();
    walk(Node::Stmt(template), &mut |node| {
        if let Node::Stmt(Stmt::Macro(declared)) = node {
            let names = declared.args.iter().filter_map(|arg| match arg {
                Expr::Var(var) => Some(var.id),
                _ => None,
            });
            let first = declared.args.len() - declared.defaults.len();
            macros.insert(declared.name, names.skip(first).map(|name| (first, name)).collect());
        }
    });
    let mut refused = None;
    walk(Node::Stmt(template), &mut |node| {
        let call = match node {
            Node::Expr(Expr::Call(call)) => call,
            Node::Stmt(Stmt::CallBlock(block)) => &block.call,
            _ => return,
        };
        let Expr::Var(var) = &call.expr else { return };
        let defaults: &Vec<(usize, &str)> = match macros.get(var.id) {
            Some(defaults) => defaults,
            None => return,
        };
        let replaced = |(at, given): (usize, &CallArg<'_>)| {
            let defaulted = match given {
                CallArg::Pos(_) => defaults.first().is_some_and(|(first, _)| at >= *first),
                CallArg::Kwarg(name, _) => defaults.iter().any(|(_, known)| known == name),
                CallArg::PosSplat(_) | CallArg::KwargSplat(_) => !defaults.is_empty(),
            };
            defaulted && !has_value(argument(given).1)
        };
        if call.args.iter().enumerate().any(replaced) {
            refused = Some(format!("an argument of {} that may have no value", var.id));
        }
    });
    refused.map_or(Ok(()), |refused| Err(TemplateError::Syntax(refused)))
}

/// Whether an expression has a value whatever its names are.
fn has_value(expr: &Expr<'_>) -> bool {
    match expr {
        Expr::BinOp(op) => match op.op {
            BinOpKind::ScOr => has_value(&op.right),
            BinOpKind::ScAnd => has_value(&op.left) && has_value(&op.right),
            _ => true,
        },
        Expr::IfExpr(choice) => {
            has_value(&choice.true_expr) && choice.false_expr.as_ref().is_some_and(has_value)
        }
        Expr::Filter(filter) => !matches!(filter.name, "first" | "last" | "default" | "d"),
        Expr::Var(_) | Expr::GetAttr(_) | Expr::GetItem(_) | Expr::Call(_) => false,
        _ => true,
    }
}

fn visit(node: Node<'_, '_>, place: Place) -> Result<(), TemplateError> {
    let refused = match node {
        Node::Stmt(
            Stmt::Block(_)
            | Stmt::Import(_)
            | Stmt::FromImport(_)
            | Stmt::Extends(_)
            | Stmt::Include(_)
            | Stmt::AutoEscape(_),
        ) => Some("a tag that needs other templates".to_owned()),
        // Jinja2 takes all values before it sets the first name.
        Node::Stmt(Stmt::WithBlock(with)) if with.assignments.len() > 1 => {
            Some("with for more than one name".to_owned())
        }
        // Jinja2 goes on to the `else` of a loop whose every turn was cut short.
        Node::Stmt(Stmt::ForLoop(each)) if !each.else_body.is_empty() && is_cut(&each.body) => {
            Some("a loop with else, and break or continue".to_owned())
        }
        // In Jinja2 these have names of their own.
        Node::Stmt(Stmt::SetBlock(block)) if sets_names(&block.body) => {
            Some("a name that is set within set".to_owned())
        }
        Node::Stmt(Stmt::FilterBlock(block)) if sets_names(&block.body) => {
            Some("a name that is set within filter".to_owned())
        }
        Node::Stmt(_) => None,
        Node::Expr(expr) => refusal(expr, place),
    };
    if let Some(refused) = refused {
        return Err(TemplateError::Syntax(refused));
    }
    children(node).into_iter().try_for_each(|child| visit(child, place_of(child, node, place)))
}

fn sets_names(body: &[Stmt<'_>]) -> bool {
    body.iter().any(|stmt| match stmt {
        Stmt::Set(set) => !matches!(set.target, Expr::GetAttr(_)),
        Stmt::SetBlock(_) | Stmt::Macro(_) => true,
        Stmt::IfCond(cond) => sets_names(&cond.true_body) || sets_names(&cond.false_body),
        _ => false,
    })
}

fn is_cut(body: &[Stmt<'_>]) -> bool {
    body.iter().any(|stmt| {
        let mut cut = false;
        walk(Node::Stmt(stmt), &mut |node| {
            cut |= matches!(node, Node::Stmt(Stmt::Break(_) | Stmt::Continue(_)));
        });
        cut
    })
}

fn refusal(expr: &Expr<'_>, place: Place) -> Option<String> {
    match expr {
        Expr::Var(var) if NAMES.contains(&var.id) => Some(format!("the name {}", var.id)),
        Expr::GetAttr(attribute) if METHODS.contains(&attribute.name) && place != Place::Called => {
            Some(format!("the method {} without a call", attribute.name))
        }
        Expr::Filter(filter) if GENERATORS.contains(&filter.name) && place != Place::Read => {
            Some(format!("the filter {} without |list", filter.name))
        }
        // Python writes a view's own name.
        Expr::Call(call) if place == Place::Emitted && is_view(&call.expr) => {
            Some("a dict's view that is made to be text".to_owned())
        }
        Expr::BinOp(op) if matches!(op.op, BinOpKind::Concat) => {
            let is_container =
                |side: &Expr<'_>| matches!(side, Expr::List(_) | Expr::Tuple(_) | Expr::Map(_));
            let made = is_container(&op.left) || is_container(&op.right);
            made.then(|| "a list or dict that is made to be text".to_owned())
        }
        // What is marked safe makes the text around it be escaped.
        Expr::Filter(filter) if filter.name == "safe" && place != Place::Emitted => {
            Some("the filter safe within an expression".to_owned())
        }
        _ => None,
    }
}

fn is_view(method: &Expr<'_>) -> bool {
    matches!(method, Expr::GetAttr(attribute) if matches!(attribute.name, "items" | "keys" | "values"))
}

fn place_of(child: Node<'_, '_>, parent: Node<'_, '_>, place: Place) -> Place {
    let Node::Expr(child) = child else { return Place::Other };
    let is = |other: &Expr<'_>| std::ptr::eq(child, other);
    match parent {
        Node::Stmt(Stmt::EmitExpr(_)) => Place::Emitted,
        Node::Stmt(Stmt::ForLoop(each)) if is(&each.iter) => Place::Read,
        Node::Expr(Expr::IfExpr(choice)) if !is(&choice.test_expr) => place,
        Node::Expr(Expr::BinOp(op)) if matches!(op.op, BinOpKind::Concat) => match place {
            Place::Emitted => Place::Emitted,
            _ => Place::Other,
        },
        Node::Expr(Expr::BinOp(op)) if matches!(op.op, BinOpKind::In) && is(&op.right) => {
            Place::Read
        }
        Node::Expr(Expr::Compare(chain)) => {
            let contains =
                |op: CompareOpKind| matches!(op, CompareOpKind::In | CompareOpKind::NotIn);
            let read =
                chain.ops.len() == 1 && chain.ops.iter().any(|op| contains(op.op) && is(&op.expr));
            if read { Place::Read } else { Place::Other }
        }
        Node::Expr(Expr::Filter(filter)) if READERS.contains(&filter.name) => {
            if filter.expr.as_ref().is_some_and(is) { Place::Read } else { Place::Other }
        }
        Node::Expr(Expr::Call(call)) if is(&call.expr) => Place::Called,
        Node::Expr(Expr::Call(call)) => match &call.expr {
            Expr::GetAttr(attribute) if attribute.name == "join" => Place::Read,
            _ => Place::Other,
        },
        _ => Place::Other,
    }
}
