//! Orders and cycles: the only place that knows the graph library.

use std::collections::{BTreeSet, VecDeque};

use petgraph::{Direction, algo::tarjan_scc, prelude::DiGraphMap};

use crate::playbook::schema::Step;

/// Who needs whom, by index.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    /// An edge goes from what is needed to who needs it.
    graph: DiGraphMap<usize, ()>,
}

impl Graph {
    /// A graph of `size` nodes without edges.
    pub(crate) fn new(size: usize) -> Self {
        let mut graph = DiGraphMap::with_capacity(size, size);
        for node in 0..size {
            graph.add_node(node);
        }
        Self { graph }
    }

    /// `who` needs `what`.
    pub(crate) fn add(&mut self, who: usize, what: usize) {
        self.graph.add_edge(what, who, ());
    }

    /// What an `always` step needs that names nothing: every other step of its phase that is not `always`, but for those
    /// behind such a step, itself or another.
    pub(crate) fn add_unsaid(&mut self, steps: &[(usize, &Step)]) {
        let names_nothing = |n: &usize| steps[*n].1.always && steps[*n].1.needs.is_empty();
        let last: Vec<usize> = (0..steps.len()).filter(names_nothing).collect();
        let mut behind = vec![false; steps.len()];
        let mut open = last.clone();
        while let Some(node) = open.pop() {
            open.extend(self.graph.neighbors(node).filter(|next| !std::mem::replace(&mut behind[*next], true)));
        }
        for who in last {
            for (what, (phase, step)) in steps.iter().enumerate() {
                if *phase == steps[who].0 && !step.always && !behind[what] {
                    self.add(who, what);
                }
            }
        }
    }

    /// Every node after all it needs, and otherwise in the order of the indexes. Nodes on cycles are left out.
    pub(crate) fn order(&self) -> Vec<usize> {
        let mut open: Vec<usize> = self.graph.nodes().map(|node| self.needs(node).count()).collect();
        let mut ready: BTreeSet<usize> = self.graph.nodes().filter(|node| open[*node] == 0).collect();
        let mut order = Vec::with_capacity(open.len());
        while let Some(node) = ready.pop_first() {
            order.push(node);
            for next in self.graph.neighbors(node) {
                open[next] -= 1;
                if open[next] == 0 {
                    ready.insert(next);
                }
            }
        }
        order
    }

    /// One cycle of each knot, each node needing the next one, beginning with the smallest index.
    pub(crate) fn cycles(&self) -> Vec<Vec<usize>> {
        let mut cycles: Vec<Vec<usize>> = tarjan_scc(&self.graph)
            .into_iter()
            .filter(|knot| knot.len() > 1 || self.graph.contains_edge(knot[0], knot[0]))
            .filter_map(|knot| self.shortest_cycle(&knot.into_iter().collect()))
            .collect();
        cycles.sort();
        cycles
    }

    /// Marks everything that `node` needs, directly or through others.
    pub(crate) fn mark_ancestors(&self, node: usize, marks: &mut [bool]) {
        let mut open = vec![node];
        while let Some(node) = open.pop() {
            open.extend(self.needs(node).filter(|need| !std::mem::replace(&mut marks[*need], true)));
        }
    }

    /// What `node` needs itself.
    pub(crate) fn needs(&self, node: usize) -> impl Iterator<Item = usize> + '_ {
        self.graph.neighbors_directed(node, Direction::Incoming)
    }

    /// The shortest way from the smallest node of a knot back to itself.
    fn shortest_cycle(&self, knot: &BTreeSet<usize>) -> Option<Vec<usize>> {
        let start = *knot.first()?;
        let mut ways = VecDeque::from([vec![start]]);
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop_front() {
            for need in self.needs(*way.last()?) {
                if need == start {
                    return Some(way);
                }
                if knot.contains(&need) && seen.insert(need) {
                    let mut longer = way.clone();
                    longer.push(need);
                    ways.push_back(longer);
                }
            }
        }
        None
    }
}
