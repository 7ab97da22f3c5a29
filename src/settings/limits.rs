//! What the cores of manager and agent get of the settings: in a running process, and in the simulator.

use super::{Settings, TokenSettings};
use crate::tokens::SessionLimits;
use faasnet_actors::{
    agent::AgentLimits,
    block_store::RoomLimits,
    block_transfer::TransferLimits,
    event_log::{EventLogLimits, RingLimits},
    function_tree::{OriginLimits, TreeLimits},
    instance::InstanceLimits,
    manager::ManagerLimits,
    profiles::ProfileLimits,
    scheduler::Limits,
    world::BatchLimits,
};
use std::time::Duration;

fn millis(value: u64) -> Duration {
    Duration::from_millis(value)
}

impl TokenSettings {
    pub fn session_limits(&self) -> SessionLimits {
        SessionLimits {
            ttl: millis(self.session_ttl_ms),
            tries_max: self.login_tries_max,
            tries_window: millis(self.login_window_ms),
            addresses_max: self.login_addresses_max,
        }
    }
}

impl Settings {
    /// `batch` is what the metadata store takes at once.
    pub fn manager_limits(&self, batch: BatchLimits) -> ManagerLimits {
        let (manager, scheduler, tree) = (&self.manager, &self.scheduler, &self.tree);
        let (profile, events) = (&self.profile, &self.events);
        let lease = millis(manager.lease_ms);
        ManagerLimits {
            scheduler: Limits {
                functions_max: scheduler.functions_max,
                functions_per_vm_max: scheduler.functions_per_vm_max,
                starts_per_request_max: scheduler.starts_per_request_max,
                preheat_vms_max: scheduler.preheat_vms_max,
                starts_waiting_max: scheduler.starts_waiting_max,
                starts_kept: scheduler.starts_kept,
                instances_per_function_max: scheduler.instances_per_function_max,
                keep_alive: millis(scheduler.keep_alive_ms),
                keep_alive_max: millis(scheduler.keep_alive_max_ms),
                restart_min: millis(scheduler.restart_min_ms),
                restart_max: millis(scheduler.restart_max_ms),
                requests_waiting_per_function_max: scheduler.requests_waiting_per_function_max,
                requests_waiting_max: scheduler.requests_waiting_max,
                placement_deadline: millis(scheduler.placement_deadline_ms),
                ready_deadline: millis(scheduler.ready_deadline_ms),
                lease,
                starts_at_once_per_vm: scheduler.starts_at_once_per_vm,
                vm_idle: millis(scheduler.vm_idle_ms),
                drain_deadline: millis(scheduler.drain_deadline_ms),
                // Agents try again after at most the longest pause, and say hello within a lease.
                rejoin_grace: lease + millis(self.agent.reconnect_max_ms),
                recordings_max: profile.recordings_max,
                recordings_at_once_max: profile.recordings_at_once_max,
                starts_per_row_max: scheduler.starts_per_row_max,
                batch,
                coalesce: millis(events.coalesce_ms),
            },
            profiles: ProfileLimits {
                profiles_max: profile.profiles_max,
                ranges_max: profile.ranges_max,
                recordings_waiting_max: profile.recordings_waiting_max,
                hot_blocks_max: profile.hot_blocks_max,
                optimize_after: profile.optimize_after,
                packings_max: profile.packings_max,
                attempts_max: profile.attempts_max,
                retry_min: millis(profile.retry_min_ms),
                retry_max: millis(profile.retry_max_ms),
            },
            tree: TreeLimits {
                ancestors_max: tree.ancestors_max,
                capability_ttl: millis(manager.capability_ttl_ms),
                complaint_life: millis(tree.complaint_life_ms),
                origin: OriginLimits {
                    budget_percent: tree.origin_budget_percent,
                    window: millis(tree.origin_budget_window_ms),
                    grant_blocks: tree.origin_grant_blocks,
                    grant_ttl: millis(tree.origin_grant_ttl_ms),
                },
                lease,
            },
            heartbeat: millis(manager.heartbeat_ms),
            lease,
            orders_in_flight_max: manager.orders_in_flight_max,
            orders_queued_max: manager.orders_queued_max,
            rejoin_grace: millis(tree.rejoin_grace_ms),
            mailbox_permits: scheduler.mailbox_permits,
            tree_threads: manager.tree_threads,
            journal_bytes_max: self.metadata.journal_bytes_max,
            events: EventLogLimits {
                ring: RingLimits { events_max: events.kept_events_max, bytes_max: events.kept_bytes_max },
                waiting_max: events.waiting_max,
                counted_max: events.counted_max,
                coalesce: millis(events.coalesce_ms),
            },
        }
    }

    pub fn agent_limits(&self) -> AgentLimits {
        let (agent, transfer, holder) = (&self.agent, &self.transfer, &self.holder);
        AgentLimits {
            instances_max: agent.instances_max,
            memory_cache_bytes: transfer.memory_cache_bytes,
            disk: RoomLimits {
                bytes_max: transfer.disk_cache_bytes,
                patience: millis(transfer.stall_ms),
                wait_max: millis(transfer.room_wait_ms),
            },
            reconnect_min: millis(agent.reconnect_min_ms),
            reconnect_max: millis(agent.reconnect_max_ms),
            stop_grace: millis(agent.stop_grace_ms),
            transfer: TransferLimits {
                in_flight_blocks_min: transfer.in_flight_blocks_min,
                in_flight_blocks_max: transfer.in_flight_blocks_max,
                queued_blocks_max: transfer.queued_blocks_max,
                unsent_blocks_max: transfer.unsent_blocks_max,
                children_max: transfer.children_max,
                read_ahead_blocks_max: transfer.read_ahead_blocks_max,
                hops_max: transfer.hops_max,
                stall: millis(transfer.stall_ms),
                early_child: millis(transfer.early_child_ms),
                origin_share_blocks: transfer.origin_share_blocks,
                retry_min: millis(transfer.retry_min_ms),
                retry_max: millis(transfer.retry_max_ms),
                read_deadline: millis(holder.read_deadline_ms),
            },
            instance: InstanceLimits {
                probe_interval: millis(agent.probe_interval_ms),
                probe_timeout: millis(agent.probe_timeout_ms),
                stop_grace: millis(agent.stop_grace_ms),
                pids_max: holder.pids_max,
                writable_bytes: holder.writable_bytes,
                log_bytes_max: holder.log_bytes_max,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_that_tests_of_the_cores_start_from_are_the_shipped_ones() {
        let settings = Settings::default();
        assert_eq!(settings.agent_limits().transfer, TransferLimits::SHIPPED);
        let batch = BatchLimits { operations_max: 1, bytes_max: 1 };
        assert_eq!(settings.manager_limits(batch).tree, TreeLimits::SHIPPED);
        assert_eq!(settings.manager_limits(batch).profiles, ProfileLimits::SHIPPED);
    }
}
