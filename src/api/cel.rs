//! The validation rules that the API server enforces, in its expression language (CEL), with their messages.
//!
//! Each rule stands once: the custom resources carry it, and `plan` refuses the same objects with the same text.
//! Rules that need more than one object, or a computation, are not here.
//!
//! The API server estimates what a rule may cost and refuses a definition that could cost too much. It knows the
//! size of a field, but not of a function's result: `string(self)` counts as endless, so that a size, which is a
//! number or a text, is told apart by `type()`.

use serde::Serialize;

/// One rule of `x-kubernetes-validations`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CelRule {
    /// The expression; true is valid.
    pub rule: &'static str,
    /// What is wrong and what to do.
    pub message: &'static str,
}

impl CelRule {
    /// As the derive of the root types takes it.
    pub(super) fn rule(&self) -> kube::core::Rule {
        kube::core::Rule::new(self.rule).message(self.message)
    }
}

// Every kind.

/// The name of an object of ours.
pub const NAME: CelRule = CelRule {
    rule: "self.metadata.name.size() <= 50 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    message: "metadata.name must begin with a letter, hold only a-z, 0-9 and -, end with a letter or digit, and have at most 50 characters; shorten or rename it (children add to the name)",
};
/// A duration.
pub const DURATION: CelRule = CelRule {
    rule: "self != '' && self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?([0-9]{1,6}ms)?$')",
    message: "not a duration; write it like 250ms, 3s, 1m30s or 24h",
};
/// A duration that must not be zero.
pub const POSITIVE: CelRule = CelRule {
    rule: "self == '' || !self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?([0-9]{1,6}ms)?$') || duration(self) > duration('0s')",
    message: "must be longer than 0s; give a duration like 250ms or 30s",
};
/// A size.
pub const SIZE: CelRule = CelRule {
    rule: "type(self) == string ? self.matches('^[0-9]{1,15}([.][0-9]{1,3})?(k|M|G|T|Ki|Mi|Gi|Ti)?$') : self >= 0",
    message: "not a size; write it in bytes like 64Ki, 1Mi or 1048576",
};

// MessageStore.

/// `broker` names exactly one connection.
pub const BROKER_ONE: CelRule = CelRule {
    rule: "[has(self.secretRef), has(self.clusterRef)].exists_one(x, x)",
    message: "broker needs exactly one of secretRef and clusterRef; keep one of them",
};
/// A store is a queue, an exchange or both.
pub const QUEUE_OR_EXCHANGE: CelRule = CelRule {
    rule: "has(self.queue) || has(self.exchange)",
    message: "neither queue nor exchange; give a queue (`queue: {}` takes the defaults), an exchange, or both",
};
/// Bindings lead from an exchange to a queue.
pub const BINDINGS_NEED_BOTH: CelRule = CelRule {
    rule: "!has(self.bindings) || self.bindings.size() == 0 || (has(self.exchange) && has(self.queue))",
    message: "bindings need an exchange and a queue; add the missing one, or remove bindings",
};
/// A fanout exchange knows no binding keys.
pub const BINDINGS_NOT_FANOUT: CelRule = CelRule {
    rule: "!has(self.bindings) || self.bindings.size() == 0 || !has(self.exchange) || self.exchange.type != 'Fanout'",
    message: "bindings mean nothing with an exchange of type Fanout; remove bindings, or use Topic or Direct",
};
/// A topic has no binding by itself.
pub const TOPIC_NEEDS_BINDINGS: CelRule = CelRule {
    rule: "!has(self.queue) || !has(self.exchange) || self.exchange.type != 'Topic' || (has(self.bindings) && self.bindings.size() > 0)",
    message: "a queue behind an exchange of type Topic needs bindings; list the patterns it takes, like [\"orders.*.created\"] or [\"#\"]",
};
/// What is never declared has no arguments of ours.
pub const LIMITS_WITH_EXISTING: CelRule = CelRule {
    rule: "self.management != 'Existing' || !(has(self.maxLength) || has(self.maxLengthBytes))",
    message: "maxLength and maxLengthBytes mean nothing with management Existing, since the queue is never declared; remove them, or use management Declare",
};
/// Names that the broker keeps to itself.
pub const QUEUE_NAME_RESERVED: CelRule = CelRule {
    rule: "!self.startsWith('amq.')",
    message: "queue names that begin with `amq.` are reserved by the broker; choose another name",
};
/// Names that the broker keeps to itself, and exchanges it brings along.
pub const EXCHANGE_NAME_RESERVED: CelRule = CelRule {
    rule: "!self.name.startsWith('amq.') || self.management == 'Existing'",
    message: "exchanges whose names begin with `amq.` belong to the broker and cannot be declared; choose another name, or use management Existing",
};
/// A queue cannot change its arguments.
pub const QUEUE_IMMUTABLE: CelRule = CelRule {
    rule: "has(self.queue) == has(oldSelf.queue) && (!has(self.queue) || self.queue == oldSelf.queue)",
    message: "queue is immutable; create a new store and drain this one with a processor whose target is storeRef",
};
/// An exchange cannot change its name or type.
pub const EXCHANGE_IMMUTABLE: CelRule = CelRule {
    rule: "has(self.exchange) == has(oldSelf.exchange) && (!has(self.exchange) || (self.exchange.name == oldSelf.exchange.name && self.exchange.type == oldSelf.exchange.type))",
    message: "exchange.name and exchange.type are immutable; create a new store with the other exchange",
};
/// A caller waits for the store.
pub const STORE_DEADLINE: CelRule = CelRule {
    rule: "self == '' || !self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?([0-9]{1,6}ms)?$') || duration(self) <= duration('60s')",
    message: "deadline is at most 60s, since an HTTP caller is waiting; shorten it",
};

// IngressRoute.

/// The name of a rule.
pub const RULE_NAME: CelRule = CelRule {
    rule: "self.matches('^[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$')",
    message: "not a rule's name; use letters, digits, `-`, `_` and `.`, with a letter or digit at both ends",
};
/// A method.
pub const METHOD: CelRule =
    CelRule { rule: "self.matches('^[A-Z]+$')", message: "not an HTTP method; write it in capitals, like POST" };
/// A media type. Loose, for what it may cost with so many: what is no token matches no request.
pub const MEDIA_TYPE: CelRule = CelRule {
    rule: "self.matches('^[^/;, *]+/[^/;, *]+$')",
    message: "not a media type; write it like application/json, without parameters",
};

/// A path pattern begins at the root.
pub const RULE_PATH: CelRule =
    CelRule { rule: "self.startsWith('/')", message: "a path begins with `/`; write it like /orders/{id}" };
/// A route answers 202 for what it takes; it cannot drop messages.
pub const NO_FILTER_IN_ROUTE: CelRule = CelRule {
    rule: "!has(self.transform) || self.transform.all(step, !has(step.filter))",
    message: "filter is for processors only; use `when` to choose what the rule takes, or move the filter to the ForwardingProcessor",
};
/// The ingress reads bodies into memory.
pub const MAX_BODY_SIZE: CelRule = CelRule {
    rule: "type(self) == string ? (!isQuantity(self) || (quantity(self).compareTo(quantity('0')) > 0 && quantity(self).compareTo(quantity('15Mi')) <= 0)) : (self > 0 && self <= 15728640)",
    message: "maxBodySize is more than 0 and at most 15Mi, since brokers take no message over 16 MiB; choose a size in between",
};
/// Headers travel in one frame.
pub const MAX_HEADER_SIZE: CelRule = CelRule {
    rule: "type(self) == string ? (!isQuantity(self) || (quantity(self).compareTo(quantity('1Ki')) >= 0 && quantity(self).compareTo(quantity('64Ki')) <= 0)) : (self >= 1024 && self <= 65536)",
    message: "maxHeaderSize is at least 1Ki and at most 64Ki, since headers must fit into one frame of the broker; choose a size in between",
};
/// A body of the largest size must be able to pass.
pub const IN_FLIGHT_HOLDS_BODY: CelRule = CelRule {
    rule: "(type(self.maxInFlightBytes) == string ? (isQuantity(self.maxInFlightBytes) && quantity(self.maxInFlightBytes).isInteger() ? quantity(self.maxInFlightBytes).asInteger() : 9223372036854775807) : self.maxInFlightBytes) >= (type(self.maxBodySize) == string ? (isQuantity(self.maxBodySize) && quantity(self.maxBodySize).isInteger() ? quantity(self.maxBodySize).asInteger() : 0) : self.maxBodySize)",
    message: "maxInFlightBytes is smaller than maxBodySize, so a body of that size could never be taken; raise maxInFlightBytes or lower maxBodySize",
};

// Transforms.

/// A step does one thing.
pub const STEP_ONE: CelRule = CelRule {
    rule: "[has(self.setHeader), has(self.removeHeader), has(self.setBody), has(self.filter), has(self.log)].exists_one(x, x)",
    message: "a transform step is exactly one of setHeader, removeHeader, setBody, filter and log; split it into several steps",
};

// ForwardingProcessor.

/// The source does not change under a processor.
pub const SOURCE_IMMUTABLE: CelRule = CelRule {
    rule: "self.storeRef == oldSelf.storeRef",
    message: "storeRef is immutable; create a new processor on the other store",
};
/// A target is in one place.
pub const TARGET_ONE: CelRule = CelRule {
    rule: "[has(self.url), has(self.serviceRef), has(self.storeRef)].exists_one(x, x)",
    message: "target needs exactly one of url, serviceRef and storeRef; keep one of them",
};
/// A store is not called over HTTP.
pub const TARGET_STORE_ALONE: CelRule = CelRule {
    rule: "!has(self.storeRef) || !(has(self.headers) || has(self.tls) || has(self.auth))",
    message: "headers, tls and auth mean nothing beside target.storeRef, since a store is not called over HTTP; remove them",
};
/// A method, or the stored one.
pub const TARGET_METHOD: CelRule = CelRule {
    rule: "self.matches('^([A-Z]+|Preserve)$')",
    message: "not an HTTP method; write it in capitals, like POST, or Preserve for the stored one",
};
/// Where a URL points must be readable from the manifest.
pub const TARGET_URL: CelRule = CelRule {
    rule: r"self.matches('^https?://([a-zA-Z0-9._~-]+|\\[[0-9a-fA-F:.]+\\])(:[0-9]{1,5})?([/?][^# ]*)?$') && !self.contains('{{') && !self.contains('{%')",
    message: "not a URL that can be called; write http://host:port/path or https://…, without user name and password (use auth.basic), fragment or templates",
};
/// The path of a Service.
pub const SERVICE_PATH: CelRule = CelRule {
    rule: "self.startsWith('/') && !self.contains('{{') && !self.contains('{%') && !self.contains('#')",
    message: "not a path that can be called; write /path or /path?query, without fragment or templates",
};
/// The longest attempt.
pub const TARGET_TIMEOUT: CelRule = CelRule {
    rule: "self == '' || !self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?([0-9]{1,6}ms)?$') || duration(self) <= duration('5m')",
    message: "a time-out of the target is at most 5m, since the broker takes a message back that is held for too long; shorten it",
};
/// The longest wait of a caller.
pub const REPLY_TIMEOUT: CelRule = CelRule {
    rule: "self == '' || !self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?([0-9]{1,6}ms)?$') || duration(self) <= duration('10m')",
    message: "a caller waits for at most 10m, since its pod has to wait as long when it is replaced; shorten it",
};
/// Credentials are of one sort.
pub const AUTH_ONE: CelRule = CelRule {
    rule: "[has(self.basic), has(self.bearer)].exists_one(x, x)",
    message: "auth needs exactly one of basic and bearer; keep one of them",
};
/// Strict order is one at a time.
pub const STRICT_CONCURRENCY: CelRule = CelRule {
    rule: "self.ordering != 'Strict' || self.concurrency == 1",
    message: "ordering Strict delivers one message at a time; use concurrency: 1, or ordering: PerKey or None",
};
/// A key orders nothing otherwise.
pub const KEY_WITHOUT_PER_KEY: CelRule = CelRule {
    rule: "!has(self.orderingKey) || self.ordering == 'PerKey'",
    message: "orderingKey means nothing without ordering: PerKey; set that, or remove orderingKey",
};
/// A key is needed to order by it.
pub const PER_KEY_WITHOUT_KEY: CelRule = CelRule {
    rule: "self.ordering != 'PerKey' || has(self.orderingKey)",
    message: "ordering PerKey needs an orderingKey; give an expression like headers['x-customer']",
};
/// Ticks come from one clock.
pub const POLL_ONE: CelRule = CelRule {
    rule: "[has(self.interval), has(self.cron)].exists_one(x, x)",
    message: "poll needs exactly one of interval and cron; keep one of them",
};
/// A batch takes something.
pub const BATCH_SIZE: CelRule = CelRule {
    rule: "self == -1 || self >= 1",
    message: "batchSize is 1 or more, or -1 for as many as are there at the tick; choose one of these",
};
/// A gap needs an order.
pub const MESSAGE_INTERVAL_CONCURRENCY: CelRule = CelRule {
    rule: "!has(self.poll) || self.concurrency == 1 || self.poll.messageInterval.matches('^(0+h)?(0+m)?(0+s)?(0+ms)?$')",
    message: "poll.messageInterval is a gap between single messages; use concurrency: 1, or messageInterval: 0s",
};
/// Endless redeliveries have a number of their own.
pub const MAX_REDELIVERIES: CelRule =
    CelRule { rule: "self >= -1", message: "maxRedeliveries is 0 or more, or -1 for ever; choose one of these" };
/// Dead letters go somewhere only if there are any.
pub const DEAD_LETTER_STORE_UNUSED: CelRule = CelRule {
    rule: "!has(self.deadLetterStoreRef) || self.action == 'DeadLetter'",
    message: "deadLetterStoreRef means nothing unless action is DeadLetter; remove it, or set action: DeadLetter",
};
/// Order, schedule and rate hold in one pod only.
pub const REPLICAS: CelRule = CelRule {
    rule: "self.workload.replicas <= 1 || (self.ordering == 'None' && !has(self.poll) && !has(self.rateLimit))",
    message: "more than one replica needs ordering: None and neither poll nor rateLimit; use replicas: 1, or change those",
};
/// The answer is kept in memory and becomes a message.
pub const RESPONSE_BODY_SIZE: CelRule = CelRule {
    rule: "type(self) == string ? (!isQuantity(self) || quantity(self).compareTo(quantity('15Mi')) <= 0) : self <= 15728640",
    message: "response.maxBodySize is at most 15Mi, since brokers take no message over 16 MiB; choose a smaller size",
};
