//! The rules of all routes on one listener, compiled: which rule takes a request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use http::header::{self, HeaderMap};

use super::admission::{Budget, InFlight};
use super::answer::{AnswerError, AnswerTemplate, Text};
use super::no_rule::NoRule;
use super::schema::Schema;
use crate::core::matching::{PathPattern, PathTable, PatternError};
use crate::expression::{CompileError, Condition, Step, Transform};
use crate::plan::{BodyKind, IngressPlan, Limits, RulePlan};
use crate::store::publisher::Publisher;
use crate::telemetry::metrics::{Metrics, RouteMetrics};

/// Publishers by the names of their stores.
type Publishers = BTreeMap<String, Arc<Publisher>>;

/// One `IngressRoute` to be compiled into a table.
#[derive(Debug)]
pub struct RouteInput {
    /// What it does.
    pub plan: IngressPlan,
    /// A publisher for each store that a rule names.
    pub publishers: Publishers,
    /// Its metrics.
    pub metrics: RouteMetrics,
    /// What is counted of it; goes into the next table when the plan changes, so that a reload forgets nothing that
    /// is in flight.
    pub counters: Arc<RouteCounters>,
}

/// What became of the requests of a route since the process started, and what is in flight now.
#[derive(Debug, Default)]
pub struct RouteCounters {
    pub(super) accepted: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) failed: AtomicU64,
    in_flight: Arc<InFlight>,
}

impl RouteCounters {
    /// Stored and answered.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Not stored, because of the request.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// Not stored, because of us or the store.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// Why a route cannot be compiled. Plans that passed validation do not come here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rule `{rule}` of {route}: {reason}")]
pub struct RouteError {
    /// `<namespace>/<name>` of the route.
    pub route: String,
    /// The rule's name.
    pub rule: String,
    /// What is wrong.
    pub reason: Box<RuleError>,
}

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The path pattern.
    #[error(transparent)]
    Path(#[from] PatternError),
    /// A method.
    #[error("`{0}` is not a method")]
    Method(String),
    /// The JSON Schema.
    #[error("the schema does not compile: {0}")]
    Schema(String),
    /// A store without a publisher.
    #[error("there is no store `{0}`")]
    Store(String),
    /// The condition.
    #[error("when: {0}")]
    When(CompileError),
    /// The routing key's template, or its length.
    #[error("routingKey: {0}")]
    RoutingKey(CompileError),
    /// The transform.
    #[error(transparent)]
    Transform(CompileError),
    /// A transform that could settle a message without anybody being told.
    #[error("transform: a filter has no meaning in a route; use `when`")]
    Filter,
    /// An answer.
    #[error("response.{0}: {1}")]
    Answer(&'static str, AnswerError),
}

/// One route: its limits and where it is counted.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) name: String,
    pub(super) limits: Limits,
    pub(super) budget: Budget,
    pub(super) metrics: RouteMetrics,
    pub(super) counters: Arc<RouteCounters>,
    /// When its first publish could have failed.
    pub(super) since: Instant,
    /// When the last publish failed, in milliseconds since then; 0: none, or it is over. Said once in the log, not once a
    /// request.
    pub(super) failed_at: AtomicU64,
}

/// One rule, compiled.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) route: Arc<Route>,
    /// `<namespace>/<route>/<rule>`.
    pub(super) label: String,
    pub(super) pattern: PathPattern,
    pub(super) methods: Vec<Method>,
    pub(super) consumes: Vec<String>,
    pub(super) when: Option<Condition>,
    pub(super) routing_key: Option<Text>,
    pub(super) transform: Option<Transform>,
    pub(super) json: bool,
    pub(super) schema: Option<Schema>,
    pub(super) forward_credentials: bool,
    /// The name of its store.
    pub(super) store: String,
    /// Absent in a preview, which stores nothing.
    pub(super) publisher: Option<Arc<Publisher>>,
    /// The caller waits so long for the reply.
    pub(super) reply: Option<Duration>,
    pub(super) accepted: AnswerTemplate,
    pub(super) invalid: AnswerTemplate,
    pub(super) store_failed: AnswerTemplate,
}

/// All rules of a listener. Immutable; a changed configuration is a new table.
#[derive(Debug)]
pub struct RouteTable {
    pub(super) rules: Vec<Arc<Rule>>,
    paths: PathTable,
    only_route: Option<Arc<Route>>,
    pub(super) listener: ListenerLimits,
}

/// The limits that hold before a rule is known: the largest of the routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ListenerLimits {
    pub(super) max_header_size: usize,
    pub(super) read_timeout: Duration,
    pub(super) max_connections: usize,
    /// Some rule is request-reply.
    pub(super) callers_wait: bool,
}

/// Without any route: what the API's defaults are.
const NO_ROUTES: ListenerLimits = ListenerLimits {
    max_header_size: 32 * 1024,
    read_timeout: Duration::from_secs(30),
    max_connections: 10_000,
    callers_wait: false,
};

impl RouteTable {
    /// Whether a route compiles, before anything is declared for it.
    pub fn check(plan: &IngressPlan) -> Result<(), RouteError> {
        for rule in &plan.rules {
            let known = plan.stores.contains_key(&rule.store);
            let checked = if known { Compiled::of(rule).map(drop) } else { Err(RuleError::Store(rule.store.clone())) };
            checked.map_err(|reason| RouteError {
                route: plan.object.slashed(),
                rule: rule.name.clone(),
                reason: Box::new(reason),
            })?;
        }
        Ok(())
    }

    /// Compiles routes into one table. The order of the routes matters only where they overlap.
    pub fn compile(inputs: Vec<RouteInput>) -> Result<Self, RouteError> {
        Self::build(inputs, |publishers, store| {
            let publisher = publishers.get(store).cloned();
            publisher.map(Some).ok_or_else(|| RuleError::Store(store.to_owned()))
        })
    }

    /// The same, of routes that store nothing.
    pub(super) fn without_stores(plans: Vec<IngressPlan>) -> Result<Self, RouteError> {
        let metrics = Metrics::default();
        let input = |plan: IngressPlan| RouteInput {
            metrics: metrics.route(&plan.object.slashed()),
            publishers: BTreeMap::new(),
            counters: Arc::default(),
            plan,
        };
        Self::build(plans.into_iter().map(input).collect(), |_, _| Ok(None))
    }

    fn build(
        inputs: Vec<RouteInput>,
        publisher: impl Fn(&Publishers, &str) -> Result<Option<Arc<Publisher>>, RuleError>,
    ) -> Result<Self, RouteError> {
        let mut rules = Vec::new();
        let mut routes = Vec::new();
        for input in inputs {
            let (plan, publishers) = (input.plan, input.publishers);
            let route = Arc::new(Route {
                name: plan.object.slashed(),
                budget: Budget::new(
                    input.counters.in_flight.clone(),
                    u64::from(plan.limits.max_in_flight),
                    plan.limits.max_in_flight_bytes,
                ),
                limits: plan.limits,
                metrics: input.metrics,
                counters: input.counters,
                since: Instant::now(),
                failed_at: AtomicU64::new(0),
            });
            for rule in plan.rules {
                let name = rule.name.clone();
                let compiled =
                    publisher(&publishers, &rule.store).and_then(|publisher| Rule::compile(rule, &route, publisher));
                let located = |reason| RouteError { route: route.name.clone(), rule: name, reason: Box::new(reason) };
                rules.push(Arc::new(compiled.map_err(located)?));
            }
            routes.push(route);
        }
        let paths = PathTable::new(rules.iter().map(|rule| &rule.pattern));
        let callers_wait = rules.iter().any(|rule: &Arc<Rule>| rule.reply.is_some());
        let listener = ListenerLimits { callers_wait, ..listener_limits(&routes) };
        let only_route = if routes.len() == 1 { routes.pop() } else { None };
        Ok(Self { rules, paths, only_route, listener })
    }

    /// The rules that take this path, method and content type, in order, all of one route. Never empty.
    pub(super) fn find(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Vec<&Arc<Rule>>, Box<NoRule>> {
        let mut found: Vec<&Arc<Rule>> = self.paths.find(path).into_iter().map(|at| &self.rules[at]).collect();
        let Some(first) = found.first() else { return Err(NoRule::path(self.only_route.clone())) };
        let of_path = first.route.clone();
        let mut allowed: Vec<&Method> = Vec::new();
        found.retain(|rule| {
            let takes = rule.methods.contains(method);
            if !takes {
                allowed.extend(&rule.methods);
            }
            takes
        });
        let Some(first) = found.first() else { return Err(NoRule::method(method, allowed, of_path)) };
        let route = first.route.clone();
        found.retain(|rule| Arc::ptr_eq(&rule.route, &route));
        let media_type = media_type(headers);
        let mut consumed: Vec<&str> = Vec::new();
        found.retain(|rule| {
            let takes = rule.takes(media_type);
            if !takes {
                consumed.extend(rule.consumes.iter().map(String::as_str));
            }
            takes
        });
        if found.is_empty() { Err(NoRule::media_type(consumed, route)) } else { Ok(found) }
    }

    /// What cannot be told from its rule is counted for the route if there is only one.
    pub(super) fn only_route(&self) -> Option<&Arc<Route>> {
        self.only_route.as_ref()
    }
}

/// The media type of a request without its parameters.
pub(super) fn media_type(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or(value).trim())
}

fn listener_limits(routes: &[Arc<Route>]) -> ListenerLimits {
    let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    let limits = routes.iter().map(|route| &route.limits);
    limits
        .map(|limits| ListenerLimits {
            max_header_size: size(limits.max_header_size),
            read_timeout: limits.read_timeout,
            max_connections: size(u64::from(limits.max_connections)),
            callers_wait: false,
        })
        .reduce(|a, b| ListenerLimits {
            max_header_size: a.max_header_size.max(b.max_header_size),
            read_timeout: a.read_timeout.max(b.read_timeout),
            max_connections: a.max_connections.max(b.max_connections),
            callers_wait: false,
        })
        .unwrap_or(NO_ROUTES)
}

/// What a rule comes to without its route and its store.
struct Compiled {
    pattern: PathPattern,
    methods: Vec<Method>,
    when: Option<Condition>,
    routing_key: Option<Text>,
    transform: Option<Transform>,
    schema: Option<Schema>,
    accepted: AnswerTemplate,
    invalid: AnswerTemplate,
    store_failed: AnswerTemplate,
}

impl Compiled {
    fn of(plan: &RulePlan) -> Result<Self, RuleError> {
        let answer = |name, plan| AnswerTemplate::compile(plan).map_err(|error| RuleError::Answer(name, error));
        let methods = plan
            .methods
            .iter()
            .map(|name| Method::from_bytes(name.as_bytes()).map_err(|_| RuleError::Method(name.clone())));
        Ok(Self {
            pattern: PathPattern::parse(&plan.path)?,
            methods: methods.collect::<Result<_, _>>()?,
            when: plan.when.as_deref().map(Condition::compile).transpose().map_err(RuleError::When)?,
            routing_key: plan.routing_key.as_deref().map(Text::compile).transpose().map_err(RuleError::RoutingKey)?,
            transform: compile_transform(&plan.transform)?,
            schema: plan.schema.as_ref().map(Schema::compile).transpose().map_err(RuleError::Schema)?,
            accepted: answer("accepted", &plan.accepted)?,
            invalid: answer("invalid", &plan.invalid)?,
            store_failed: answer("storeFailed", &plan.store_failed)?,
        })
    }
}

impl Rule {
    fn compile(plan: RulePlan, route: &Arc<Route>, publisher: Option<Arc<Publisher>>) -> Result<Self, RuleError> {
        let Compiled { pattern, methods, when, routing_key, transform, schema, accepted, invalid, store_failed } =
            Compiled::of(&plan)?;
        if let (Some(publisher), Some(_)) = (&publisher, plan.reply_timeout) {
            publisher.expect_answers();
        }
        Ok(Self {
            label: format!("{}/{}", route.name, plan.name),
            json: plan.body == BodyKind::Json || plan.schema.is_some(),
            forward_credentials: plan.forward_credentials,
            store: plan.store,
            publisher,
            reply: plan.reply_timeout,
            consumes: plan.consumes,
            route: route.clone(),
            pattern,
            methods,
            when,
            routing_key,
            transform,
            schema,
            accepted,
            invalid,
            store_failed,
        })
    }

    /// Whether what comes after the choice of the rule needs a view of the request.
    pub(super) fn has_expressions(&self) -> bool {
        self.routing_key.as_ref().is_some_and(Text::is_dynamic)
            || self.accepted.is_dynamic()
            || self.store_failed.is_dynamic()
    }

    pub(super) fn takes(&self, media_type: Option<&str>) -> bool {
        self.consumes.is_empty()
            || media_type.is_some_and(|sent| self.consumes.iter().any(|taken| taken.eq_ignore_ascii_case(sent)))
    }
}

fn compile_transform(steps: &[Step]) -> Result<Option<Transform>, RuleError> {
    if steps.iter().any(|step| matches!(step, Step::Filter { .. })) {
        return Err(RuleError::Filter);
    }
    let transform = Transform::compile(steps).map_err(RuleError::Transform)?;
    Ok(if transform.is_empty() { None } else { Some(transform) })
}
