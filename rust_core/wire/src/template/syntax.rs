//! A parsed template as a tree of nodes, in the order in which Jinja2 walks it.

use minijinja::machinery::ast::{CallArg, Expr, Macro, Stmt};

/// A statement or an expression.
#[derive(Clone, Copy)]
pub(super) enum Node<'t, 's> {
    Stmt(&'t Stmt<'s>),
    Expr(&'t Expr<'s>),
}

/// `node` and all that is in it, parents before children.
pub(super) fn walk<'t, 's>(node: Node<'t, 's>, visit: &mut impl FnMut(Node<'t, 's>)) {
    visit(node);
    for child in children(node) {
        walk(child, visit);
    }
}

/// What a node is made of.
pub(super) fn children<'t, 's>(node: Node<'t, 's>) -> Vec<Node<'t, 's>> {
    let mut found = Vec::new();
    match node {
        Node::Stmt(stmt) => of_statement(stmt, &mut found),
        Node::Expr(expr) => of_expression(expr, &mut found),
    }
    found
}

/// The expression of an argument, and its name if it has one.
pub(super) fn argument<'t, 's>(argument: &'t CallArg<'s>) -> (Option<&'s str>, &'t Expr<'s>) {
    match argument {
        CallArg::Kwarg(name, expr) => (Some(name), expr),
        CallArg::Pos(expr) | CallArg::PosSplat(expr) | CallArg::KwargSplat(expr) => (None, expr),
    }
}

fn of_statement<'t, 's>(stmt: &'t Stmt<'s>, found: &mut Vec<Node<'t, 's>>) {
    let mut exprs = |of: &[&'t Expr<'s>]| found.extend(of.iter().copied().map(Node::Expr));
    match stmt {
        Stmt::EmitExpr(emit) => exprs(&[&emit.expr]),
        Stmt::ForLoop(each) => {
            exprs(&[&each.target, &each.iter]);
            found.extend(each.body.iter().chain(&each.else_body).map(Node::Stmt));
            found.extend(each.filter_expr.iter().map(Node::Expr));
        }
        Stmt::IfCond(cond) => {
            exprs(&[&cond.expr]);
            found.extend(cond.true_body.iter().chain(&cond.false_body).map(Node::Stmt));
        }
        Stmt::WithBlock(with) => {
            for (name, value) in &with.assignments {
                exprs(&[name, value]);
            }
            found.extend(with.body.iter().map(Node::Stmt));
        }
        Stmt::Set(set) => exprs(&[&set.target, &set.expr]),
        Stmt::SetBlock(set) => {
            exprs(&[&set.target]);
            found.extend(set.filter.iter().map(Node::Expr));
            found.extend(set.body.iter().map(Node::Stmt));
        }
        Stmt::FilterBlock(filter) => {
            exprs(&[&filter.filter]);
            found.extend(filter.body.iter().map(Node::Stmt));
        }
        Stmt::Template(template) => found.extend(template.children.iter().map(Node::Stmt)),
        Stmt::Macro(declared) => of_macro(declared, found),
        Stmt::CallBlock(block) => {
            exprs(&[&block.call.expr]);
            found.extend(block.call.args.iter().map(|given| Node::Expr(argument(given).1)));
            of_macro(&block.macro_decl, found);
        }
        Stmt::Do(call) => {
            exprs(&[&call.call.expr]);
            found.extend(call.call.args.iter().map(|given| Node::Expr(argument(given).1)));
        }
        Stmt::AutoEscape(block) => found.extend(block.body.iter().map(Node::Stmt)),
        // Templates that stand alone have none of the others.
        _ => {}
    }
}

fn of_macro<'t, 's>(declared: &'t Macro<'s>, found: &mut Vec<Node<'t, 's>>) {
    found.extend(declared.args.iter().chain(&declared.defaults).map(Node::Expr));
    found.extend(declared.body.iter().map(Node::Stmt));
}

fn of_expression<'t, 's>(expr: &'t Expr<'s>, found: &mut Vec<Node<'t, 's>>) {
    let mut exprs = |of: &[&'t Expr<'s>]| found.extend(of.iter().copied().map(Node::Expr));
    match expr {
        Expr::Var(_) | Expr::Const(_) => {}
        Expr::Slice(slice) => {
            exprs(&[&slice.expr]);
            let bounds = slice.start.iter().chain(&slice.stop).chain(&slice.step);
            found.extend(bounds.map(Node::Expr));
        }
        Expr::UnaryOp(op) => exprs(&[&op.expr]),
        Expr::BinOp(op) => exprs(&[&op.left, &op.right]),
        Expr::Compare(chain) => {
            exprs(&[&chain.expr]);
            found.extend(chain.ops.iter().map(|op| Node::Expr(&op.expr)));
        }
        Expr::IfExpr(choice) => {
            exprs(&[&choice.test_expr, &choice.true_expr]);
            found.extend(choice.false_expr.iter().map(Node::Expr));
        }
        Expr::Filter(filter) => {
            found.extend(filter.expr.iter().map(Node::Expr));
            found.extend(filter.args.iter().map(|given| Node::Expr(argument(given).1)));
        }
        Expr::Test(test) => {
            exprs(&[&test.expr]);
            found.extend(test.args.iter().map(|given| Node::Expr(argument(given).1)));
        }
        Expr::GetAttr(attribute) => exprs(&[&attribute.expr]),
        Expr::GetItem(item) => exprs(&[&item.expr, &item.subscript_expr]),
        Expr::Call(call) => {
            exprs(&[&call.expr]);
            found.extend(call.args.iter().map(|given| Node::Expr(argument(given).1)));
        }
        Expr::List(list) => found.extend(list.items.iter().map(Node::Expr)),
        Expr::Tuple(tuple) => found.extend(tuple.items.iter().map(Node::Expr)),
        Expr::Map(map) => found.extend(map.keys.iter().chain(&map.values).map(Node::Expr)),
    }
}
