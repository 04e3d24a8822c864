//! A document as it was written: every value with its line and column, so that lint can point at anything.

use std::fmt;

use serde_json::Number;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) kind: Kind,
}

/// From 1; 0: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
    /// What stood here was wrong and has been reported; it decodes to whatever is wanted.
    Hole,
}

/// A key and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) at: Position,
    pub(crate) name: String,
}

/// Where in a document: `spec.phases[0].steps[1].timeout`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Path(pub(crate) Vec<Segment>);

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Segment {
    Key(String),
    Index(usize),
}

impl Path {
    /// From the top of the document: `Path::of("spec.outputs")`.
    pub(crate) fn of(dotted: &str) -> Self {
        Self(dotted.split('.').map(|name| Segment::Key(name.to_owned())).collect())
    }

    pub(crate) fn key(&self, name: &str) -> Self {
        let mut path = self.clone();
        path.0.push(Segment::Key(name.to_owned()));
        path
    }

    pub(crate) fn index(&self, index: usize) -> Self {
        let mut path = self.clone();
        path.0.push(Segment::Index(index));
        path
    }

    /// A list's element: `path.item("steps", 2)`.
    pub(crate) fn item(&self, name: &str, index: usize) -> Self {
        self.key(name).index(index)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Key(name) if place == 0 => f.write_str(name)?,
                Segment::Key(name) => write!(f, ".{name}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

impl Node {
    pub(crate) fn hole(at: Position) -> Self {
        Self { at, kind: Kind::Hole }
    }

    /// The value directly below.
    pub(crate) fn child(&self, segment: &Segment) -> Option<&Node> {
        match (&self.kind, segment) {
            (Kind::Map(entries), Segment::Key(name)) => {
                entries.iter().find(|(key, _)| key.name == *name).map(|(_, node)| node)
            }
            (Kind::List(items), Segment::Index(index)) => items.get(*index),
            _ => None,
        }
    }

    /// The value at a path, for change.
    pub(crate) fn at_mut(&mut self, path: &[Segment]) -> Option<&mut Node> {
        let Some((first, rest)) = path.split_first() else {
            return Some(self);
        };
        let child = match (&mut self.kind, first) {
            (Kind::Map(entries), Segment::Key(name)) => {
                entries.iter_mut().find(|(key, _)| key.name == *name).map(|(_, node)| node)
            }
            (Kind::List(items), Segment::Index(index)) => items.get_mut(*index),
            _ => None,
        };
        child?.at_mut(rest)
    }

    /// The value at a path, or the nearest one above that is there.
    pub(crate) fn nearest(&self, path: &Path) -> &Node {
        path.0.iter().try_fold(self, |node, segment| node.child(segment).ok_or(node)).unwrap_or_else(|above| above)
    }

    /// The position of the key that a path ends in; of the value where it is a list's element.
    pub(crate) fn key_position(&self, path: &Path) -> Position {
        let Some((Segment::Key(name), above)) = path.0.split_last() else {
            return self.nearest(path).at;
        };
        let parent = self.nearest(&Path(above.to_vec()));
        match &parent.kind {
            Kind::Map(entries) => {
                entries.iter().find(|(key, _)| key.name == *name).map_or(parent.at, |(key, _)| key.at)
            }
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) | Kind::List(_) | Kind::Hole => parent.at,
        }
    }

    /// Whether a path leads to, or through, something that was wrong and has been reported.
    pub(crate) fn is_hole(&self, path: &Path) -> bool {
        let mut node = self;
        for segment in &path.0 {
            match node.child(segment) {
                Some(child) => node = child,
                None => break,
            }
        }
        matches!(node.kind, Kind::Hole)
    }
}
