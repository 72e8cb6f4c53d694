//! Routes that would take the same request, which matters where several share one listener.

use crate::core::matching::PathPattern;
use crate::plan::{IngressPlan, RulePlan};

/// Two rules of two routes that share a method and a path that both can match, whatever their `when` says.
#[derive(Debug, Clone, Copy)]
pub struct Overlap<'p> {
    /// The one that comes first.
    pub first: (&'p IngressPlan, &'p RulePlan),
    /// The other.
    pub second: (&'p IngressPlan, &'p RulePlan),
}

impl std::fmt::Display for Overlap<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ((one, one_rule), (other, other_rule)) = (self.first, self.second);
        write!(
            f,
            "rule `{}` ({}) of IngressRoute `{}` and rule `{}` ({}) of IngressRoute `{}` can take the same request; \
             give one of them a listener of its own with `--route {}=ADDR`, or change a path",
            other_rule.name,
            other_rule.path,
            other.object.slashed(),
            one_rule.name,
            one_rule.path,
            one.object.slashed(),
            other.object.name,
        )
    }
}

/// For each two routes that overlap, the first two rules that do.
pub fn overlapping_routes<'p>(routes: impl IntoIterator<Item = &'p IngressPlan>) -> Vec<Overlap<'p>> {
    let read = |plan: &'p IngressPlan| {
        let rules = plan.rules.iter().filter_map(|rule| Some((rule, PathPattern::parse(&rule.path).ok()?)));
        (plan, rules.collect::<Vec<_>>())
    };
    let routes: Vec<_> = routes.into_iter().map(read).collect();
    let mut overlaps = Vec::new();
    for (at, (second, second_rules)) in routes.iter().enumerate() {
        for (first, first_rules) in &routes[..at] {
            let pairs = second_rules.iter().flat_map(|two| first_rules.iter().map(move |one| (one, two)));
            let found = pairs.into_iter().find(|((one, one_path), (two, two_path))| {
                one.methods.iter().any(|method| two.methods.contains(method)) && one_path.overlaps(two_path)
            });
            if let Some(((one, _), (two, _))) = found {
                overlaps.push(Overlap { first: (first, one), second: (second, two) });
            }
        }
    }
    overlaps
}
