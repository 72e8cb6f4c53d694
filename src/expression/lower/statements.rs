//! Statements: what stands in `{% %}`, and the text between.

use minijinja::machinery::Span;
use minijinja::machinery::ast::{Expr, FilterBlock, ForLoop, IfCond, Macro, Set, SetBlock, Stmt, WithBlock};

use super::{Writer, Written};

impl Writer<'_> {
    fn statements(&mut self, statements: &[Stmt<'_>]) -> Written {
        statements.iter().try_for_each(|statement| self.statement(statement))
    }

    pub(super) fn statement(&mut self, statement: &Stmt<'_>) -> Written {
        self.deeper(Span::default(), |this| this.statement_inner(statement))
    }

    fn statement_inner(&mut self, statement: &Stmt<'_>) -> Written {
        match statement {
            Stmt::Template(template) => self.statements(&template.children),
            Stmt::EmitExpr(emit) => {
                self.push("{{ ");
                self.expression(&emit.expr)?;
                self.push(" }}");
                Ok(())
            }
            Stmt::EmitRaw(raw) => {
                // As an expression, so that it is charged like any other text.
                self.push("{{ ");
                self.quoted(raw.raw);
                self.push(" }}");
                Ok(())
            }
            Stmt::ForLoop(each) => self.for_loop(each),
            Stmt::IfCond(condition) => self.if_condition(condition),
            Stmt::WithBlock(with) => self.with_block(with),
            Stmt::Set(set) => self.set(set),
            Stmt::SetBlock(set) => self.set_block(set),
            Stmt::FilterBlock(block) => self.filter_block(block),
            Stmt::Macro(declared) => {
                self.push("{% macro ");
                self.name(declared.name, declared.span())?;
                self.parameters(declared)?;
                self.push(" %}");
                self.statements(&declared.body)?;
                self.push("{% endmacro %}");
                Ok(())
            }
            Stmt::CallBlock(block) => {
                self.push("{% call");
                self.parameters(&block.macro_decl)?;
                self.push(" ");
                self.call(&block.call, block.call.span())?;
                self.push(" %}");
                self.statements(&block.macro_decl.body)?;
                self.push("{% endcall %}");
                Ok(())
            }
            Stmt::Do(call) => {
                self.push("{% do ");
                self.call(&call.call, call.call.span())?;
                self.push(" %}");
                Ok(())
            }
            Stmt::AutoEscape(block) => {
                self.refuse(block.span(), "autoescape is not supported; use the filters tojson, escape or urlencode")
            }
            Stmt::Block(it) => self.refuse(it.span(), "block is not supported: a template stands alone"),
            Stmt::Import(it) => self.refuse(it.span(), "import is not supported: a template stands alone"),
            Stmt::FromImport(it) => self.refuse(it.span(), "import is not supported: a template stands alone"),
            Stmt::Extends(it) => self.refuse(it.span(), "extends is not supported: a template stands alone"),
            Stmt::Include(it) => self.refuse(it.span(), "include is not supported: a template stands alone"),
        }
    }

    fn for_loop(&mut self, each: &ForLoop<'_>) -> Written {
        self.push("{% for ");
        self.target(&each.target)?;
        self.push(" in ");
        self.expression(&each.iter)?;
        self.push("|__items");
        if let Some(condition) = &each.filter_expr {
            self.push(" if ");
            self.defined(condition)?;
        }
        self.push(if each.recursive { " recursive %}" } else { " %}" });
        self.statements(&each.body)?;
        self.otherwise(&each.else_body)?;
        self.push("{% endfor %}");
        Ok(())
    }

    fn if_condition(&mut self, condition: &IfCond<'_>) -> Written {
        self.push("{% if ");
        self.defined(&condition.expr)?;
        self.push(" %}");
        self.statements(&condition.true_body)?;
        self.otherwise(&condition.false_body)?;
        self.push("{% endif %}");
        Ok(())
    }

    fn with_block(&mut self, with: &WithBlock<'_>) -> Written {
        self.push("{% with ");
        for (at, (target, value)) in with.assignments.iter().enumerate() {
            self.push(if at == 0 { "" } else { ", " });
            self.target_in_brackets(target)?;
            self.push(" = ");
            self.expression(value)?;
        }
        self.push(" %}");
        self.statements(&with.body)?;
        self.push("{% endwith %}");
        Ok(())
    }

    fn set(&mut self, set: &Set<'_>) -> Written {
        self.push("{% set ");
        self.target(&set.target)?;
        self.push(" = ");
        self.expression(&set.expr)?;
        // What goes into a namespace must not contain one.
        self.push(if matches!(set.target, Expr::Var(_)) { " %}" } else { "|__storable %}" });
        Ok(())
    }

    fn set_block(&mut self, set: &SetBlock<'_>) -> Written {
        self.push("{% set ");
        self.target(&set.target)?;
        self.push("|__bounded");
        if let Some(filter) = &set.filter {
            self.push("|");
            self.expression(filter)?;
        }
        self.push(" %}");
        self.statements(&set.body)?;
        self.push("{% endset %}");
        Ok(())
    }

    fn filter_block(&mut self, block: &FilterBlock<'_>) -> Written {
        self.push("{% filter __bounded|");
        self.expression(&block.filter)?;
        self.push(" %}");
        self.statements(&block.body)?;
        self.push("{% endfilter %}");
        Ok(())
    }

    fn otherwise(&mut self, body: &[Stmt<'_>]) -> Written {
        if body.is_empty() {
            return Ok(());
        }
        self.push("{% else %}");
        self.statements(body)
    }

    /// What a value is assigned to.
    fn target(&mut self, target: &Expr<'_>) -> Written {
        match target {
            Expr::Var(var) => self.name(var.id, var.span()),
            Expr::GetAttr(attribute) => {
                self.target(&attribute.expr)?;
                self.push(".");
                self.push(attribute.name);
                Ok(())
            }
            Expr::List(list) => {
                for item in &list.items {
                    self.target_in_brackets(item)?;
                    self.push(", ");
                }
                Ok(())
            }
            other => self.refuse(other.span(), "a value cannot be assigned to this; write a name"),
        }
    }

    fn target_in_brackets(&mut self, target: &Expr<'_>) -> Written {
        if !matches!(target, Expr::List(_)) {
            return self.target(target);
        }
        self.push("(");
        self.target(target)?;
        self.push(")");
        Ok(())
    }

    fn parameters(&mut self, declared: &Macro<'_>) -> Written {
        self.push("(");
        let without_default = declared.args.len().saturating_sub(declared.defaults.len());
        for (at, parameter) in declared.args.iter().enumerate() {
            self.target(parameter)?;
            if let Some(default) = at.checked_sub(without_default).and_then(|at| declared.defaults.get(at)) {
                self.push("=");
                self.expression(default)?;
            }
            self.push(", ");
        }
        self.push(")");
        Ok(())
    }
}
