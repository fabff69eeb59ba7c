//! Names whose value depends on how Jinja2 finds names, which is before it runs a template.
//!
//! A scope that sets a name, and does not read it before, has it without a value until then: its inner scopes do not
//! find an argument of that name. The engine here finds names as it goes, and would show them the argument.

use std::collections::HashSet;

use minijinja::machinery::ast::{Expr, Stmt};

use super::syntax::{Node, argument, walk};

/// The names that must not be arguments.
pub(super) fn hidden(template: &Stmt<'_>) -> Vec<String> {
    let mut scope = Scope::default();
    if let Stmt::Template(template) = template {
        scope.statements(&template.children);
    }
    scope.hidden.into_iter().map(str::to_owned).collect()
}

/// What was seen so far of one scope.
#[derive(Default)]
struct Scope<'s> {
    /// Names that it reads or sets.
    known: HashSet<&'s str>,
    /// Names that its inner scopes read.
    inner: HashSet<&'s str>,
    hidden: HashSet<&'s str>,
}

// === impl Scope ===

impl<'s> Scope<'s> {
    fn statements<'t>(&mut self, statements: impl IntoIterator<Item = &'t Stmt<'s>>)
    where
        's: 't,
    {
        for statement in statements {
            self.statement(statement);
        }
    }

    fn statement(&mut self, statement: &Stmt<'s>) {
        match statement {
            Stmt::EmitExpr(emit) => self.read(&emit.expr),
            Stmt::Set(set) => {
                self.read(&set.expr);
                self.set(&set.target);
            }
            Stmt::SetBlock(set) => {
                set.filter.iter().for_each(|filter| self.read(filter));
                self.enter(&[], &set.body);
                self.set(&set.target);
            }
            Stmt::IfCond(cond) => {
                self.read(&cond.expr);
                self.statements(cond.true_body.iter().chain(&cond.false_body));
            }
            Stmt::ForLoop(each) => {
                self.read(&each.iter);
                let mut inner = Scope::of(&[&each.target]);
                each.filter_expr.iter().for_each(|filter| inner.read(filter));
                inner.statements(each.body.iter().chain(&each.else_body));
                self.leave(inner, &[&each.target]);
            }
            Stmt::WithBlock(with) => {
                with.assignments.iter().for_each(|(_, value)| self.read(value));
                let names: Vec<&Expr<'s>> = with.assignments.iter().map(|(name, _)| name).collect();
                self.enter(&names, &with.body);
            }
            Stmt::FilterBlock(filter) => {
                self.read(&filter.filter);
                self.enter(&[], &filter.body);
            }
            Stmt::Macro(declared) => {
                let names: Vec<&Expr<'s>> = declared.args.iter().collect();
                let mut inner = Scope::of(&names);
                declared.defaults.iter().for_each(|default| inner.read(default));
                inner.statements(&declared.body);
                self.leave(inner, &names);
                self.set_name(declared.name);
            }
            Stmt::CallBlock(block) => {
                self.read(&block.call.expr);
                block.call.args.iter().for_each(|given| self.read(argument(given).1));
                let names: Vec<&Expr<'s>> = block.macro_decl.args.iter().collect();
                self.enter(&names, &block.macro_decl.body);
            }
            _ => {}
        }
    }

    fn of(parameters: &[&Expr<'s>]) -> Scope<'s> {
        let mut scope = Scope::default();
        for parameter in parameters {
            scope.read(parameter);
        }
        scope
    }

    fn enter(&mut self, parameters: &[&Expr<'s>], body: &[Stmt<'s>]) {
        let mut inner = Scope::of(parameters);
        inner.statements(body);
        self.leave(inner, parameters);
    }

    fn leave(&mut self, inner: Scope<'s>, parameters: &[&Expr<'s>]) {
        let own = Scope::of(parameters).known;
        let read = inner.known.into_iter().chain(inner.inner);
        self.inner.extend(read.filter(|name| !own.contains(name)));
        self.hidden.extend(inner.hidden);
    }

    fn read(&mut self, expr: &Expr<'s>) {
        names(expr, &mut |name| {
            self.known.insert(name);
        });
    }

    fn set(&mut self, target: &Expr<'s>) {
        match target {
            Expr::Var(_) | Expr::List(_) | Expr::Tuple(_) => {
                names(target, &mut |name| self.set_name(name));
            }
            // A namespace is read.
            _ => self.read(target),
        }
    }

    fn set_name(&mut self, name: &'s str) {
        if self.known.insert(name) && self.inner.contains(name) {
            self.hidden.insert(name);
        }
    }
}

fn names<'s>(expr: &Expr<'s>, visit: &mut impl FnMut(&'s str)) {
    walk(Node::Expr(expr), &mut |node| {
        if let Node::Expr(Expr::Var(var)) = node {
            visit(var.id);
        }
    });
}
