//! Rewrites what users write into a smaller language before it is compiled.
//!
//! The engine's own operators know nothing of the budget, of numbers that keep their text, or of a strict
//! undefined that `default()` can still handle. So each operator becomes one of our filters (`a * b` becomes
//! `a|__multiply(b)`), each value that must be defined is checked, and what loads other templates is refused.
//! A map from the rewritten text to the user's keeps the positions in errors right.

mod statements;

use std::fmt::Write as _;
use std::ops::Range;

use minijinja::Value;
use minijinja::machinery::ast::{BinOpKind, Call, CallArg, CompareOpKind, Expr, UnaryOpKind};
use minijinja::machinery::{Span, parse, parse_expr};
use minijinja::value::ValueKind;

use super::error::{CompileError, Position};
use super::{filters, predicates};

/// Levels of nesting, and links of a chain such as `a ~ b ~ c`, in one expression.
const MAX_NESTING: usize = 500;
/// Our own filters begin with this; a user's name must not.
const RESERVED: &str = "__";

/// The rewritten text and the way back.
#[derive(Debug, Default)]
pub(super) struct Lowered {
    pub(super) text: String,
    /// Where each expression stands in the new text and in the user's.
    spans: Vec<(Range<usize>, Range<usize>)>,
}

impl Lowered {
    /// The place in the user's text of a place in the new one: that of the smallest expression around it.
    pub(super) fn origin(&self, place: &Range<usize>) -> Option<Range<usize>> {
        let around = self.spans.iter().filter(|(new, _)| new.start <= place.start && new.end >= place.end);
        let before = || self.spans.iter().filter(|(new, _)| new.start <= place.start).max_by_key(|(new, _)| new.start);
        around.min_by_key(|(new, _)| new.len()).or_else(before).map(|(_, old)| old.clone())
    }

    /// Where to look if the engine knows only the line of the new text: at its end, for the expression before it.
    pub(super) fn end_of_line(&self, line: usize) -> Range<usize> {
        let end = self.text.split_inclusive('\n').take(line).map(str::len).sum();
        end..end
    }
}

/// Rewrites an expression.
pub(super) fn expression(source: &str) -> Result<Lowered, CompileError> {
    let tree = parse_expr(source).map_err(|error| CompileError::of_engine(&error, source))?;
    let mut writer = Writer::new(source);
    writer.expression(&tree)?;
    Ok(writer.out)
}

/// Rewrites a template.
pub(super) fn template(source: &str) -> Result<Lowered, CompileError> {
    let syntax = minijinja::syntax::SyntaxConfig::default();
    let tree = parse(source, "template", syntax).map_err(|error| CompileError::of_engine(&error, source))?;
    let mut writer = Writer::new(source);
    writer.statement(&tree)?;
    Ok(writer.out)
}

struct Writer<'s> {
    source: &'s str,
    out: Lowered,
    nesting: usize,
}

type Written = Result<(), CompileError>;

impl<'s> Writer<'s> {
    fn new(source: &'s str) -> Self {
        Self { source, out: Lowered::default(), nesting: 0 }
    }

    fn push(&mut self, text: &str) {
        self.out.text.push_str(text);
    }

    fn refuse<T>(&self, span: Span, what: impl Into<String>) -> Result<T, CompileError> {
        Err(CompileError::Invalid { at: Position::of(self.source, span.start_offset as usize), what: what.into() })
    }

    fn name(&mut self, name: &str, span: Span) -> Written {
        if name.starts_with(RESERVED) {
            return self.refuse(span, format!("`{name}`: names that begin with __ are reserved; choose another"));
        }
        self.push(name);
        Ok(())
    }

    fn deeper(&mut self, span: Span, inner: impl FnOnce(&mut Self) -> Written) -> Written {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return self.refuse(span, "nested deeper than 500 levels; split it up");
        }
        let written = inner(self);
        self.nesting -= 1;
        written
    }

    /// Writes an expression so that `|filter` can follow it.
    fn expression(&mut self, expression: &Expr<'_>) -> Written {
        let span = expression.span();
        let (start, first) = (self.out.text.len(), self.out.spans.len());
        self.deeper(span, |this| this.expression_inner(expression))?;
        // The parser lets a filter begin at its name; for users it begins at its input.
        let inner = self.out.spans[first..].iter().map(|(_, old)| old.start).min().unwrap_or(usize::MAX);
        let old = inner.min(span.start_offset as usize)..span.end_offset as usize;
        self.out.spans.push((start..self.out.text.len(), old));
        Ok(())
    }

    fn expression_inner(&mut self, expression: &Expr<'_>) -> Written {
        match expression {
            Expr::Var(var) => self.name(var.id, var.span()),
            Expr::Const(constant) => self.constant(&constant.value, constant.span()),
            Expr::Slice(slice) => {
                self.expression(&slice.expr)?;
                self.push("|__slice(");
                for bound in [&slice.start, &slice.stop, &slice.step] {
                    match bound {
                        Some(bound) => self.expression(bound)?,
                        None => self.push("none"),
                    }
                    self.push(",");
                }
                self.push(")");
                Ok(())
            }
            Expr::UnaryOp(unary) => {
                self.expression(&unary.expr)?;
                self.push(match unary.op {
                    UnaryOpKind::Not => "|__not",
                    UnaryOpKind::Neg => "|__negate",
                });
                Ok(())
            }
            Expr::BinOp(binary) => self.binary(binary.op, &binary.left, &binary.right),
            Expr::Compare(chain) => {
                self.expression(&chain.expr)?;
                self.push("|__chain(");
                for link in &chain.ops {
                    let _ = write!(self.out.text, "\"{}\",", comparison(link.op));
                    self.expression(&link.expr)?;
                    self.push(",");
                }
                self.push(")");
                Ok(())
            }
            Expr::IfExpr(choice) => {
                self.push("(");
                self.expression(&choice.true_expr)?;
                self.push(" if ");
                self.defined(&choice.test_expr)?;
                if let Some(otherwise) = &choice.false_expr {
                    self.push(" else ");
                    self.expression(otherwise)?;
                }
                self.push(")");
                Ok(())
            }
            Expr::Filter(filter) => {
                if let Some(input) = &filter.expr {
                    self.expression(input)?;
                    self.push("|");
                }
                self.filter_call(filter.name, &filter.args, filter.span())
            }
            Expr::Test(test) => self.test(test.name, &test.expr, &test.args, test.span()),
            Expr::GetAttr(attribute) => {
                self.base(&attribute.expr)?;
                self.push(".");
                self.push(attribute.name);
                Ok(())
            }
            Expr::GetItem(item) => self.item(&item.expr, &item.subscript_expr),
            Expr::Call(call) => {
                self.call(call, call.span())?;
                self.push("|__bounded");
                Ok(())
            }
            Expr::List(list) => self.list(&list.items),
            Expr::Tuple(tuple) => self.list(&tuple.items),
            Expr::Map(map) => {
                self.push("[");
                for (key, value) in map.keys.iter().zip(&map.values) {
                    self.expression(key)?;
                    self.push(",");
                    self.expression(value)?;
                    self.push(",");
                }
                self.push("]|__mapping");
                Ok(())
            }
        }
    }

    fn list(&mut self, items: &[Expr<'_>]) -> Written {
        self.push("[");
        for item in items {
            self.expression(item)?;
            self.push(",");
        }
        self.push("]|__list");
        Ok(())
    }

    /// An expression that `.name` or `[key]` follows.
    fn base(&mut self, expression: &Expr<'_>) -> Written {
        let plain = match expression {
            Expr::Var(_) | Expr::GetAttr(_) => true,
            Expr::GetItem(item) => is_text(&item.subscript_expr),
            _ => false,
        };
        if plain {
            return self.expression(expression);
        }
        self.push("(");
        self.expression(expression)?;
        self.push(")");
        Ok(())
    }

    /// A key that is written down is looked up by the engine; any other by us, for texts that are long.
    fn item(&mut self, of: &Expr<'_>, key: &Expr<'_>) -> Written {
        if is_text(key) {
            self.base(of)?;
            self.push("[");
            self.expression(key)?;
            self.push("]");
            return Ok(());
        }
        self.expression(of)?;
        self.push("|__item(");
        self.expression(key)?;
        self.push(")");
        Ok(())
    }

    fn defined(&mut self, expression: &Expr<'_>) -> Written {
        self.expression(expression)?;
        self.push("|__defined");
        Ok(())
    }

    fn binary(&mut self, operator: BinOpKind, left: &Expr<'_>, right: &Expr<'_>) -> Written {
        let filter = match operator {
            BinOpKind::ScAnd | BinOpKind::ScOr => {
                self.push("(");
                self.either_or_both(operator, left, right)?;
                self.push(")");
                return Ok(());
            }
            BinOpKind::Eq => "__eq",
            BinOpKind::Ne => "__ne",
            BinOpKind::Lt => "__lt",
            BinOpKind::Lte => "__le",
            BinOpKind::Gt => "__gt",
            BinOpKind::Gte => "__ge",
            BinOpKind::In => "__in",
            BinOpKind::Add => "__add",
            BinOpKind::Sub => "__subtract",
            BinOpKind::Mul => "__multiply",
            BinOpKind::Div => "__divide",
            BinOpKind::FloorDiv => "__floor_divide",
            BinOpKind::Rem => "__remainder",
            BinOpKind::Pow => "__power",
            BinOpKind::Concat => "__concat",
        };
        self.expression(left)?;
        let _ = write!(self.out.text, "|{filter}(");
        self.expression(right)?;
        self.push(")");
        Ok(())
    }

    /// `a and b and c` without brackets, which the engine's parser would count.
    fn either_or_both(&mut self, operator: BinOpKind, left: &Expr<'_>, right: &Expr<'_>) -> Written {
        let and = matches!(operator, BinOpKind::ScAnd);
        match left {
            Expr::BinOp(inner)
                if if and { matches!(inner.op, BinOpKind::ScAnd) } else { matches!(inner.op, BinOpKind::ScOr) } =>
            {
                self.deeper(inner.span(), |this| this.either_or_both(inner.op, &inner.left, &inner.right))?;
            }
            _ => self.defined(left)?,
        }
        self.push(if and { " and " } else { " or " });
        self.defined(right)
    }

    fn test(&mut self, name: &str, of: &Expr<'_>, arguments: &[CallArg<'_>], span: Span) -> Written {
        if !predicates::NAMES.contains(&name) {
            return self.refuse(span, format!("unknown test `{name}`; there are {}", predicates::NAMES.join(", ")));
        }
        if name == "defined" || name == "undefined" {
            self.expression(of)?;
        } else {
            self.defined(of)?;
        }
        self.push(" is ");
        self.push(name);
        self.arguments(arguments, span)
    }

    fn filter_call(&mut self, name: &str, arguments: &[CallArg<'_>], span: Span) -> Written {
        if !filters::NAMES.contains(&name) {
            return self.refuse(span, format!("unknown filter `{name}`; there are {}", filters::NAMES.join(", ")));
        }
        self.push(name);
        self.arguments(arguments, span)
    }

    fn arguments(&mut self, arguments: &[CallArg<'_>], span: Span) -> Written {
        self.push("(");
        for argument in arguments {
            match argument {
                CallArg::Pos(value) => self.expression(value)?,
                CallArg::Kwarg(name, value) => {
                    self.name(name, span)?;
                    self.push("=");
                    self.expression(value)?;
                }
                CallArg::PosSplat(_) | CallArg::KwargSplat(_) => {
                    return self.refuse(span, "arguments cannot be unpacked by * or **; write them out");
                }
            }
            self.push(",");
        }
        self.push(")");
        Ok(())
    }

    fn call(&mut self, call: &Call<'_>, span: Span) -> Written {
        match &call.expr {
            Expr::Var(callee) if callee.id == "loop" => {
                self.push("loop(");
                for argument in &call.args {
                    let CallArg::Pos(items) = argument else {
                        return self.refuse(span, "loop() takes the items of the next level");
                    };
                    self.expression(items)?;
                    self.push("|__items,");
                }
                self.push(")");
                return Ok(());
            }
            Expr::Var(callee) => self.name(callee.id, callee.span())?,
            Expr::GetAttr(method) => {
                self.base(&method.expr)?;
                self.push(".");
                self.push(method.name);
            }
            other => return self.refuse(other.span(), "only functions, macros and methods can be called"),
        }
        self.arguments(&call.args, span)
    }

    fn constant(&mut self, value: &Value, span: Span) -> Written {
        match (value.kind(), value.as_str()) {
            (_, Some(text)) => {
                self.quoted(text);
                Ok(())
            }
            (ValueKind::None, _) => {
                self.push("none");
                Ok(())
            }
            (ValueKind::Bool, _) => {
                self.push(if value.is_true() { "true" } else { "false" });
                Ok(())
            }
            (ValueKind::Number, _) => {
                let text = value.to_string();
                if !text.starts_with(|first: char| first.is_ascii_digit()) {
                    return self.refuse(span, "this number is out of range; use a smaller one");
                }
                self.push(&text);
                Ok(())
            }
            _ => self.refuse(span, "this constant is not supported; write a text or a number"),
        }
    }

    fn quoted(&mut self, text: &str) {
        self.push("\"");
        for character in text.chars() {
            match character {
                '"' => self.push("\\\""),
                '\\' => self.push("\\\\"),
                '\n' => self.push("\\n"),
                '\r' => self.push("\\r"),
                other => self.out.text.push(other),
            }
        }
        self.push("\"");
    }
}

fn is_text(expression: &Expr<'_>) -> bool {
    matches!(expression, Expr::Const(constant) if constant.value.as_str().is_some())
}

fn comparison(operator: CompareOpKind) -> &'static str {
    match operator {
        CompareOpKind::Eq => "==",
        CompareOpKind::Ne => "!=",
        CompareOpKind::Lt => "<",
        CompareOpKind::Lte => "<=",
        CompareOpKind::Gt => ">",
        CompareOpKind::Gte => ">=",
        CompareOpKind::In => "in",
        CompareOpKind::NotIn => "not in",
    }
}
