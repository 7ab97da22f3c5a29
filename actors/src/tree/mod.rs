//! Shapes of function trees, behind one trait. Pure: who is whose parent, nothing else.

mod complete;

pub use complete::Complete;

use crate::id::VmId;
use std::collections::BTreeSet;

/// The places of a tree's members.
///
/// A shape may consist of several trees over the same members, one for each stripe of blocks; block
/// `b` travels in tree `b mod stripes`.
pub trait Topology: Send {
    /// Adds a VM that is not a member. Returns the VMs that have another parent now, the new one
    /// included.
    fn join(&mut self, vm: &VmId) -> BTreeSet<VmId>;
    /// Removes a VM, if it is a member. Returns the VMs that have another parent now.
    fn leave(&mut self, vm: &VmId) -> BTreeSet<VmId>;
    fn stripes(&self) -> usize;
    /// None for the root of the stripe, and for VMs that are no members.
    fn parent(&self, vm: &VmId, stripe: usize) -> Option<&VmId>;
    fn children(&self, vm: &VmId, stripe: usize) -> Vec<&VmId>;
    /// Members in the order of their places, the root of the first stripe first.
    fn members(&self) -> &[VmId];
    fn place(&self, vm: &VmId) -> Option<usize>;
    /// Edges on the longest way from a root.
    fn height(&self) -> u32;
}

/// The members between a VM and the root of a stripe, the parent first.
pub fn ancestors<'a>(tree: &'a dyn Topology, vm: &'a VmId, stripe: usize) -> impl Iterator<Item = &'a VmId> {
    std::iter::successors(tree.parent(vm, stripe), move |above| tree.parent(above, stripe))
}
