//! The metrics of glowd itself: names, labels and what they mean. glowd(8) is made from
//! this table. Names are by Prometheus' conventions: base units, `_total` for what only
//! grows.

use super::Kind;

/// Samples of one name.
#[derive(Debug)]
pub struct Family {
    /// With its suffix.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// A sentence for whoever reads the metrics.
    pub help: &'static str,
}

/// A static for each, and the list of them all, in the order of the exposition.
macro_rules! families {
    ($($id:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $id: Family = Family {
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                help: $help,
            };
        )*

        /// All of them.
        pub static ALL: &[&Family] = &[$(&$id),*];
    };
}

families! {
    BUILD: Info "glowd_build_info" ["version", "commit"]
        "Which glowd runs.";
    FLOWS_OPEN: Gauge "glowd_flows_open" []
        "Flows that are open.";
    FLOWS_LIMIT: Gauge "glowd_flows_limit" []
        "The most flows that may be open (maxFlows).";
    TAG_FLOWS_OPEN: Gauge "glowd_tag_flows_open"
        ["experiment", "experiment_id", "activity", "activity_id"]
        "Flows that are open, by experiment and activity.";
    TAG_PACKETS: Counter "glowd_tag_packets_total"
        ["experiment", "experiment_id", "activity", "activity_id"]
        "Packets that left with a mark, of flows and by rules.";
    TAG_BYTES: Counter "glowd_tag_bytes_total"
        ["experiment", "experiment_id", "activity", "activity_id"]
        "Octets of payload in those packets, retransmissions included.";
    EVENTS: Counter "glowd_events_total" ["plugin", "result"]
        "Flow events, by the plugin that they came from and by what became of them.";
    QUEUE_EVENTS: Gauge "glowd_queue_events" ["backend"]
        "Events that wait for a backend.";
    ENRICHER_QUEUE: Gauge "glowd_enricher_queue_events" ["enricher"]
        "Events that wait for an enricher.";
    INBOX_BATCHES: Gauge "glowd_inbox_batches" []
        "Batches of events and of samples that wait for the dispatcher, or for room to wait there.";
    INBOX_LIMIT: Gauge "glowd_inbox_batches_limit" []
        "The most batches for whose waiting there is room.";
    QUEUE_DROPPED: Counter "glowd_queue_dropped_total" ["backend"]
        "Events that a backend dropped since too many waited.";
    SAMPLES_DROPPED: Counter "glowd_queue_samples_dropped_total" ["backend"]
        "Samples of flows that were kept from a backend since too many events waited.";
    ENRICHER_SAMPLES: Counter "glowd_enricher_samples_total" ["enricher"]
        "Samples of open flows that an enricher took, and that were not given up.";
    ENRICHER_DROPPED: Counter "glowd_enricher_samples_dropped_total" ["enricher"]
        "Samples that were given up since the dispatcher, or who reads the kernel's, was behind.";
    ENRICHER_FAILED: Counter "glowd_enricher_failures_total" ["enricher"]
        "Times that the kernel kept an enricher from measuring flows.";
    INTERFACE_ATTACHED: Gauge "glowd_interface_attached" ["interface"]
        "Whether the marker is attached to an interface: 1, or 0 if it should be and is not.";
    INTERFACE_BYTES: Counter "glowd_interface_transmit_bytes_total" ["interface"]
        "Octets that an interface has sent on which packets are marked, marked or not.";
    INTERFACE_PACKETS: Counter "glowd_interface_transmit_packets_total" ["interface"]
        "Packets that an interface has sent on which packets are marked, marked or not.";
    MAP_ENTRIES: Gauge "glowd_bpf_map_entries" ["map"]
        "Entries in a map of the marker.";
    MAP_ENTRIES_LIMIT: Gauge "glowd_bpf_map_entries_limit" ["map"]
        "The most entries that a map of the marker has room for.";
    FLOWS_UNCOUNTED: Counter "glowd_flows_uncounted_total" []
        "Flows whose packets the marker does not count, since all its counters were in use.";
    UNMARKED: Counter "glowd_unmarked_packets_total" ["reason"]
        "Packets of open flows, or that a rule is for, that went out unmarked, by reason.";
    FIREFLIES_SENT: Counter "glowd_fireflies_sent_total" ["recipient"]
        "Fireflies sent, by the kind of recipient.";
    FIREFLIES_FAILED: Counter "glowd_fireflies_failed_total" ["recipient", "reason"]
        "Fireflies that could not be sent, by the kind of recipient and by reason.";
    FIREFLY_DATAGRAMS: Counter "glowd_firefly_datagrams_total" ["result"]
        "Datagrams that the firefly plugin received, by what became of them.";
    RELAYED: Counter "glowd_relayed_fireflies_total" ["result"]
        "Fireflies that the firefly plugin was to pass on, by what became of them.";
    FLOWS_WITHOUT_SERIES: Gauge "glowd_flows_without_series" []
        "Measured flows without series of their own, since more than maxFlowSeries are open.";
    RELOADS: Counter "glowd_config_reloads_total" ["result"]
        "Reloads of the configuration, by result.";
    RELOAD_GOOD: Gauge "glowd_config_last_reload_successful" []
        "Whether the last reload of the configuration succeeded: 1 or 0.";
    RELOAD_TIME: Gauge "glowd_config_last_reload_success_timestamp_seconds" []
        "When the configuration in force was read, in seconds since 1970.";
    REGISTRY_TIME: Gauge "glowd_registry_timestamp_seconds" []
        "When the registry in use was installed or last found to be up to date, in seconds since 1970.";
    CPU: Counter "process_cpu_seconds_total" []
        "Processor time that glowd has used, in seconds.";
    RESIDENT: Gauge "process_resident_memory_bytes" []
        "Resident memory of glowd, in bytes.";
    VIRTUAL: Gauge "process_virtual_memory_bytes" []
        "Virtual memory of glowd, in bytes.";
    THREADS: Gauge "process_threads" []
        "Threads of glowd.";
    FILES: Gauge "process_open_fds" []
        "Open file descriptors of glowd.";
    FILES_LIMIT: Gauge "process_max_fds" []
        "The most file descriptors that glowd may have.";
    START_TIME: Gauge "process_start_time_seconds" []
        "When glowd was started, in seconds since 1970.";
}
