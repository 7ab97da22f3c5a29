//! Shapes of function trees, behind one trait. Pure: who is whose parent, nothing else.

mod avl;
mod complete;
mod nodes;
mod striped;
#[cfg(test)]
mod tests;

pub use avl::Avl;
pub use complete::Complete;
pub use striped::Striped;

/// A member's number. The tree's owner gives it and may use it again when the member has left; small,
/// because shapes keep arrays by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(pub u32);

/// The places of a tree's members.
///
/// A shape may consist of several trees over the same members, one for each stripe of blocks; block
/// `b` travels in tree `b mod stripes`.
pub trait Topology: Send {
    /// Adds a node that is no member, and is not ready. Returns those that have another parent now in
    /// any stripe, each once, the new one included.
    fn join(&mut self, node: Node) -> Vec<Node>;
    /// Removes a node, if it is a member. Returns those that have another parent now in any stripe,
    /// each once.
    fn leave(&mut self, node: Node) -> Vec<Node>;
    /// The member can serve others: it is chosen as parent before those that cannot. Moves nobody.
    fn set_ready(&mut self, node: Node);
    /// Removes everyone.
    fn clear(&mut self);
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    fn stripes(&self) -> usize;
    fn root(&self, stripe: usize) -> Option<Node>;
    /// None for the root of the stripe, and for nodes that are no members.
    fn parent(&self, node: Node, stripe: usize) -> Option<Node>;
    fn children(&self, node: Node, stripe: usize) -> Vec<Node>;
    /// Edges to the root of the stripe.
    fn depth(&self, node: Node, stripe: usize) -> u32;
    /// Edges on the longest way from a root.
    fn height(&self) -> u32;
    /// Where a member is, for `restore`; None for shapes that only know the order.
    fn place(&self, _node: Node) -> Option<u64> {
        None
    }
    /// Puts members into the empty tree, each at the place that it had if that is possible.
    fn restore(&mut self, mut members: Vec<(u64, Node)>) {
        members.sort_unstable();
        for (_, node) in members {
            self.join(node);
        }
    }
}

/// The members between a node and the root of a stripe, the parent first.
pub fn ancestors(tree: &dyn Topology, node: Node, stripe: usize) -> impl Iterator<Item = Node> {
    std::iter::successors(tree.parent(node, stripe), move |above| tree.parent(*above, stripe))
}

/// The members of a stripe level by level, from left to right: the order of places.
pub fn breadth_first(tree: &dyn Topology, stripe: usize) -> impl Iterator<Item = Node> {
    let mut next: std::collections::VecDeque<Node> = tree.root(stripe).into_iter().collect();
    std::iter::from_fn(move || {
        let node = next.pop_front()?;
        next.extend(tree.children(node, stripe));
        Some(node)
    })
}
