//! Templates, conditions and keys: compiled once, run for each message.

use std::io;
use std::sync::LazyLock;

use minijinja::value::Value;
use minijinja::{Environment, Expression, UndefinedBehavior};

use super::error::{CompileError, EvalError};
use super::limits::{FUEL, MAX_TEXT, charge, check_output, overflow, within_budget};
use super::lower::{self, Lowered};
use super::scope::Context;
use super::{Scope, data, filters, functions, operators, predicates};

/// Longest template, in bytes.
pub const MAX_TEMPLATE: usize = 16 * 1024;
/// Longest expression, in bytes.
pub const MAX_EXPRESSION: usize = 1024;
/// The parser descends once for each `-` or `not` in a row: a template full of them needs about 40 MiB in a debug
/// build. Only what is used becomes memory.
const COMPILER_STACK: usize = 128 * 1024 * 1024;
/// Of the engine: macros in macros and blocks in blocks. A macro costs 4; 100 fit a thread's 2 MiB in a debug build.
const RECURSION: usize = 100;

/// What all templates share. It holds no template, and has no loader.
static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::empty();
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION);
    // Ours to be strict: an undefined name goes as far as a `default()` that waits for it.
    environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_formatter(|out, _, value| {
        let text = data::text(value)?;
        charge(text.len())?;
        out.write_str(&text)?;
        check_output()
    });
    operators::add_to(&mut environment);
    filters::add_to(&mut environment);
    predicates::add_to(&mut environment);
    functions::add_to(&mut environment);
    environment
});

/// Compiles on a thread of its own, with a stack for the deepest text that is let in.
fn on_large_stack<T: Send>(compile: impl FnOnce() -> Result<T, CompileError> + Send) -> Result<T, CompileError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("compile".to_owned()).stack_size(COMPILER_STACK);
        let handle = thread.spawn_scoped(scope, compile).map_err(|_| CompileError::NoMemory)?;
        handle.join().unwrap_or(Err(CompileError::NoMemory))
    })
}

fn check_length(source: &str, most: usize) -> Result<(), CompileError> {
    if source.len() > most { Err(CompileError::TooLong { length: source.len(), most }) } else { Ok(()) }
}

fn eval_error(error: &minijinja::Error, source: &str, lowered: &Lowered) -> EvalError {
    let range = error.range().or_else(|| error.line().map(|line| lowered.end_of_line(line)));
    EvalError::of_engine(error, source, range.and_then(|range| lowered.origin(&range)))
}

/// A template: text with `{{ expressions }}` and `{% statements %}`.
#[derive(Debug)]
pub struct Template {
    source: String,
    lowered: Lowered,
    environment: Environment<'static>,
}

impl Template {
    /// Reads a template.
    pub fn compile(source: &str) -> Result<Self, CompileError> {
        check_length(source, MAX_TEMPLATE)?;
        on_large_stack(|| {
            let lowered = lower::template(source)?;
            let mut environment = ENVIRONMENT.clone();
            environment
                .add_template_owned("template", lowered.text.clone())
                .map_err(|error| CompileError::of_lowered(&error, source, &lowered))?;
            Ok(Self { source: source.to_owned(), lowered, environment })
        })
    }

    /// Runs it. An undefined name fails.
    pub fn render(&self, scope: &Scope) -> Result<String, EvalError> {
        self.render_in(&scope.into())
    }

    /// Runs it in a scope that others use as well.
    pub fn render_in(&self, context: &Context) -> Result<String, EvalError> {
        let mut out = Bounded(Vec::new());
        let rendered = within_budget(|| {
            let template = self.environment.get_template("template")?;
            template.render_captured_to(context.root.clone(), &mut out)?;
            check_output()
        });
        rendered.map_err(|error| {
            let error = eval_error(&error, &self.source, &self.lowered);
            if context.is_binary() { error.without_body() } else { error }
        })?;
        String::from_utf8(out.0).map_err(|_| EvalError::Failed { at: None, what: "the result is not text".to_owned() })
    }
}

/// Keeps at most [`MAX_TEXT`] bytes.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_TEXT {
            overflow();
        } else {
            self.0.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Compiled {
    source: String,
    lowered: Lowered,
    expression: Expression<'static, 'static>,
}

impl Compiled {
    fn new(source: &str) -> Result<Self, CompileError> {
        check_length(source, MAX_EXPRESSION)?;
        on_large_stack(|| {
            let lowered = lower::expression(source)?;
            let expression = ENVIRONMENT
                .compile_expression_owned(lowered.text.clone())
                .map_err(|error| CompileError::of_lowered(&error, source, &lowered))?;
            Ok(Self { source: source.to_owned(), lowered, expression })
        })
    }

    /// The value, or what was read off it. An undefined name is an error.
    fn evaluate_strictly<T>(
        &self,
        context: &Context,
        read: impl FnOnce(Value) -> Result<T, minijinja::Error>,
    ) -> Result<T, EvalError> {
        let result = within_budget(|| read(data::defined(self.expression.eval(context.root.clone())?)?));
        result.map_err(|error| eval_error(&error, &self.source, &self.lowered))
    }

    /// The same; `None` if a name was undefined.
    fn evaluate<T>(
        &self,
        context: &Context,
        read: impl FnOnce(Value) -> Result<T, minijinja::Error>,
    ) -> Result<Option<T>, EvalError> {
        match self.evaluate_strictly(context, read) {
            Ok(value) => Ok(Some(value)),
            Err(EvalError::Undefined { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// An expression that is true or false: `when` of a rule, `filter` of a transform.
#[derive(Debug)]
pub struct Condition(Compiled);

impl Condition {
    /// Reads an expression.
    pub fn compile(source: &str) -> Result<Self, CompileError> {
        Compiled::new(source).map(Self)
    }

    /// Whether it holds. One that meets an undefined name is false as a whole, also with `!=` and `not`, unless
    /// `default()` or `is defined` handle the name.
    pub fn evaluate(&self, scope: &Scope) -> Result<bool, EvalError> {
        self.evaluate_in(&scope.into())
    }

    /// Whether it holds in a scope that others use as well: a request's body is parsed once for all its rules.
    pub fn evaluate_in(&self, context: &Context) -> Result<bool, EvalError> {
        Ok(self.0.evaluate(context, |value| Ok(value.is_true()))?.unwrap_or(false))
    }

    /// Why it does not hold; `None` if it does.
    pub fn objection(&self, context: &Context) -> Option<String> {
        match self.0.evaluate_strictly(context, |value| Ok(value.is_true())) {
            Ok(true) => None,
            Ok(false) => Some("it is false".to_owned()),
            Err(error @ EvalError::Undefined { .. }) => Some(format!("it is false: {error}")),
            Err(error) => Some(error.to_string()),
        }
    }
}

/// An expression whose text says which messages belong together.
#[derive(Debug)]
pub struct Key(Compiled);

impl Key {
    /// Reads an expression.
    pub fn compile(source: &str) -> Result<Self, CompileError> {
        Compiled::new(source).map(Self)
    }

    /// The key of a message; `None` if it is undefined, null or empty.
    pub fn evaluate(&self, scope: &Scope) -> Result<Option<String>, EvalError> {
        let key = self.0.evaluate(&scope.into(), |value| {
            if value.is_none() { Ok(String::new()) } else { data::text(&value).map(std::borrow::Cow::into_owned) }
        })?;
        Ok(key.filter(|key| !key.is_empty()))
    }
}
