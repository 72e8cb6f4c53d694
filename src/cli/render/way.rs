//! The way of a message through the objects of some manifests, as far as it is known without a target's answer.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http::uri::PathAndQuery;

use super::Problem;
use super::message::Draft;
use crate::api::{ForwardingProcessor, IngressRoute, MessageStore};
use crate::core::decision::{Reason, give_up};
use crate::core::message::Message;
use crate::core::ordering::Lane;
use crate::core::topology::{ExchangeKind, Topology};
use crate::forwarder::{self, Failure, Sent};
use crate::ingress::{self, Previewed, RuleName};
use crate::plan::finding::Violation;
use crate::plan::load::{Loaded, Manifests};
use crate::plan::validate::Kind;
use crate::plan::world::Named;
use crate::plan::{AuthPlan, ForwarderPlan, IngressPlan, StorePlan, TargetPlan};

type Route = Loaded<IngressRoute, IngressPlan>;
type Store = Loaded<MessageStore, StorePlan>;
type Processor = Loaded<ForwardingProcessor, ForwarderPlan>;

/// Where a message comes in.
pub(super) enum Entry<'m> {
    Routes(Vec<&'m Route>),
    Store(&'m Store),
    Processor(&'m Processor),
}

/// What became of a message.
#[derive(Debug, Default)]
pub(super) struct Way {
    /// Absent if it did not come in by a route.
    pub(super) arrival: Option<Arrival>,
    /// The processors that get it, in the order in which it reaches them.
    pub(super) stations: Vec<Station>,
    /// Publishes that no queue of these files takes: the store, and the routing key.
    pub(super) unroutable: Vec<(String, String)>,
}

/// A request, and what the routes make of it.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) request: Request<Bytes>,
    pub(super) previewed: Previewed,
    /// Why it is refused, or what fails on it.
    pub(super) error: Option<Violation>,
    /// The rules that do not take it.
    pub(super) passed_over: Vec<Violation>,
}

/// A processor that gets the message.
#[derive(Debug)]
pub(super) struct Station {
    pub(super) processor: String,
    /// The store that it takes it from.
    pub(super) source: String,
    pub(super) outcome: Outcome,
}

#[derive(Debug)]
pub(super) enum Outcome {
    Filtered,
    Sent {
        lane: Lane,
        sent: Sent,
        /// Where the credentials of the request come from.
        secret: Option<String>,
    },
    Failed {
        error: Violation,
        /// What is done with the message.
        then: String,
    },
}

impl Way {
    /// What the objects, or the message, are to be corrected for.
    pub(super) fn errors(&self) -> impl Iterator<Item = &Violation> {
        let of_stations = self.stations.iter().filter_map(|station| match &station.outcome {
            Outcome::Failed { error, .. } => Some(error),
            Outcome::Filtered | Outcome::Sent { .. } => None,
        });
        self.arrival.iter().filter_map(|arrival| arrival.error.as_ref()).chain(of_stations)
    }
}

/// Takes a message along.
pub(super) fn follow<'m>(manifests: &'m Manifests, entry: &Entry<'m>, draft: Draft) -> Result<Way, Problem> {
    let mut walk = Walk { manifests, way: Way::default(), seen: BTreeSet::new(), published: VecDeque::new() };
    match entry {
        Entry::Routes(routes) => walk.arrive(routes, draft)?,
        Entry::Store(store) => {
            walk.take(store.object.namespace(), store.object.name(), &Arc::new(draft.into_message()))?;
        }
        Entry::Processor(processor) => walk.process(processor, &Arc::new(draft.into_message()))?,
    }
    while let Some(publish) = walk.published.pop_front() {
        walk.deliver(&publish)?;
    }
    Ok(walk.way)
}

struct Publish {
    namespace: String,
    store: String,
    /// Absent: the store's own.
    routing_key: Option<String>,
    message: Arc<Message>,
}

struct Walk<'m> {
    manifests: &'m Manifests,
    way: Way,
    /// Processors that had it, by namespace and name: stores may lead into each other.
    seen: BTreeSet<(&'m str, &'m str)>,
    published: VecDeque<Publish>,
}

impl<'m> Walk<'m> {
    fn arrive(&mut self, routes: &[&Route], draft: Draft) -> Result<(), Problem> {
        let plans: Vec<IngressPlan> = routes.iter().filter_map(|route| route.plan.clone()).collect();
        let path = draft.path.clone().map_or_else(|| only_path(&plans), Ok)?;
        let request = draft.into_request(path);
        let preview = ingress::Preview::of(plans).map_err(|error| Problem::Invalid(error.to_string()))?;
        let previewed = preview.request(request.clone());
        let error = previewed.outcome.as_ref().err().map(|refused| {
            let (rule, field) = refused.by.as_ref().map_or((None, ""), |(rule, field)| (Some(rule), field.as_str()));
            about_rule(routes, rule, field, refused.reason.clone())
        });
        let passed_over = previewed.passed_over.iter();
        let passed_over = passed_over
            .map(|passed| about_rule(routes, Some(&passed.rule), passed.field, passed.why.clone()))
            .collect();
        if let Ok(taken) = &previewed.outcome {
            let namespace = taken.rule.route.split('/').next().unwrap_or_default();
            self.published.push_back(Publish {
                namespace: namespace.to_owned(),
                store: taken.store.clone(),
                routing_key: taken.routing_key.clone(),
                message: Arc::new(taken.message.clone()),
            });
        }
        self.way.arrival = Some(Arrival { request, previewed, error, passed_over });
        Ok(())
    }

    /// From a publish to the processors of every queue that takes it.
    fn deliver(&mut self, publish: &Publish) -> Result<(), Problem> {
        let Publish { namespace, store, routing_key, message } = publish;
        let stores = &self.manifests.stores;
        let here = || stores.iter().filter(|store| store.object.namespace() == namespace);
        let plans = || here().filter_map(|store| store.plan.as_ref());
        let Some(into) = plans().find(|plan| plan.name == *store) else { return Ok(()) };
        let key = routing_key.as_ref().unwrap_or(&into.topology.routing_key);
        let takers = plans().filter(|plan| plan.broker == into.broker && takes(&plan.topology, &into.topology, key));
        let takers: Vec<&str> = takers.map(|plan| plan.name.as_str()).collect();
        if takers.is_empty() {
            self.way.unroutable.push((store.clone(), key.clone()));
        }
        takers.into_iter().try_for_each(|store| self.take(namespace, store, message))
    }

    /// To every processor of a store.
    fn take(&mut self, namespace: &str, store: &str, message: &Arc<Message>) -> Result<(), Problem> {
        let of_store = |processor: &&Processor| {
            processor.object.namespace() == namespace && processor.object.spec.store_ref.name == store
        };
        let mut processors = self.manifests.processors.iter().filter(of_store);
        processors.try_for_each(|processor| self.process(processor, message))
    }

    fn process(&mut self, processor: &'m Processor, message: &Arc<Message>) -> Result<(), Problem> {
        let Some(plan) = &processor.plan else { return Ok(()) };
        if !self.seen.insert((processor.object.namespace(), processor.object.name())) {
            return Ok(());
        }
        let preview = forwarder::Preview::of(plan).map_err(|error| Problem::Invalid(error.to_string()))?;
        let outcome = match preview.message(message.clone()) {
            Ok(forwarder::Previewed::Filtered) => Outcome::Filtered,
            Ok(forwarder::Previewed::Sent { lane, as_what }) => {
                if let Sent::Message { store, message } = &as_what {
                    self.published.push_back(Publish {
                        namespace: plan.object.namespace.clone(),
                        store: store.clone(),
                        routing_key: None,
                        message: message.clone(),
                    });
                }
                Outcome::Sent { lane, sent: as_what, secret: secret(plan) }
            }
            Err(failure) => failed(processor, plan, failure),
        };
        let (name, source) = (plan.object.name.clone(), plan.source.clone());
        self.way.stations.push(Station { processor: name, source, outcome });
        Ok(())
    }
}

/// The path of the rules, if they have one only and it has no segment to be filled in.
fn only_path(plans: &[IngressPlan]) -> Result<PathAndQuery, Problem> {
    let paths: BTreeSet<&str> = plans.iter().flat_map(|plan| &plan.rules).map(|rule| rule.path.as_str()).collect();
    match paths.iter().copied().collect::<Vec<_>>().as_slice() {
        [only] if !only.contains('{') => only.parse().map_err(|_| Problem::NoPath((*only).to_owned())),
        all => Err(Problem::NoPath(all.join(", "))),
    }
}

/// Whether a queue gets what is published into a store with this key.
fn takes(queue: &Topology, into: &Topology, key: &str) -> bool {
    let Some(own) = &queue.queue else { return false };
    match (&into.exchange, &queue.exchange) {
        // The default exchange routes by the queue's name.
        (None, _) => own.name == key,
        (Some(exchange), Some(bound)) if exchange.name == bound.name => {
            exchange.kind == ExchangeKind::Fanout || queue.bindings.iter().any(|binding| exchange.routes(binding, key))
        }
        (Some(_), _) => false,
    }
}

/// What is said of a rule, at its place; of no rule in particular without one.
fn about_rule(routes: &[&Route], rule: Option<&RuleName>, field: &str, message: String) -> Violation {
    let place = rule.and_then(|rule| {
        let is = |route: &&&Route| route.plan.as_ref().is_some_and(|plan| plan.object.slashed() == rule.route);
        let route = routes.iter().find(is)?;
        let at = route.object.spec.rules.iter().position(|candidate| candidate.name == rule.rule)?;
        Some((*route, format!("spec.rules[{at}].{field}")))
    });
    let Some((route, path)) = place else {
        let none = String::new;
        return Violation { file: "request".into(), line: 0, kind: none(), name: none(), path: none(), message };
    };
    let kind = Kind::IngressRoute.as_str().to_owned();
    let (file, line) = (route.origin.file.clone(), route.origin.line_of(&path));
    Violation { file, line, kind, name: route.object.name().to_owned(), path, message }
}

fn failed(processor: &Processor, plan: &ForwarderPlan, failure: Failure) -> Outcome {
    let mut then = give_up(&plan.policy, Reason::TransformFailed).to_string();
    if let Some(store) = &plan.dead_letters {
        then = format!("{then}, into MessageStore/{store}");
    }
    let error = Violation {
        file: processor.origin.file.clone(),
        line: processor.origin.line_of(&failure.field),
        kind: Kind::ForwardingProcessor.as_str().to_owned(),
        name: processor.object.name().to_owned(),
        path: failure.field,
        message: failure.problem,
    };
    Outcome::Failed { error, then }
}

/// The Secret or `ConfigMap` with the target's credentials.
fn secret(plan: &ForwarderPlan) -> Option<String> {
    let TargetPlan::Http(target) = &plan.target else { return None };
    Some(match target.auth.as_ref()? {
        AuthPlan::Basic(name) => format!("Secret/{name}"),
        AuthPlan::Bearer(key) => format!("{}/{}", key.source.as_str(), key.name),
    })
}
