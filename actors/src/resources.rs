//! What instances take of a VM, and what a VM has.

/// Memory and CPU together, because an instance needs both on one VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resources {
    pub memory_bytes: u64,
    /// Thousandths of a core.
    pub cpu_millis: u32,
}

impl Resources {
    /// Whether all of `other` fits.
    pub fn holds(self, other: Self) -> bool {
        self.memory_bytes >= other.memory_bytes && self.cpu_millis >= other.cpu_millis
    }

    pub fn plus(self, other: Self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
        }
    }

    /// What is left without `other`; never below nothing, because a VM may come back smaller than it was.
    pub fn minus(self, other: Self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
        }
    }
}
