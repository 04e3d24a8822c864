//! Every command of `docs/operations.md` is run against a real system in the very state that its section is about.

mod agents;
mod disks;
mod page;
mod runs;
mod stage;

/// A scene of the page is a test of its name; a block of a scene that is not here fails `page`.
macro_rules! scenes {
    ($($module:ident::$scene:ident,)*) => {
        /// All scenes that are tested.
        const SCENES: &[&str] = &[$(stringify!($scene)),*];
        $(
            #[test]
            fn $scene() -> anyhow::Result<()> {
                $module::$scene(stringify!($scene))
            }
        )*
    };
}

scenes! {
    runs::first_look,
    runs::no_agent,
    runs::asks,
    runs::may_have_run,
    runs::paused,
    runs::cancelled,
    runs::quarantined,
    runs::alerts,
    agents::agent_lost,
    agents::nats_gone,
    agents::maintenance,
    agents::rolling_upgrade,
    agents::token_leaked,
    agents::nats_key_leaked,
    disks::disk_full,
    disks::damaged,
    disks::store_gone,
    disks::backup,
    disks::restored,
    disks::moved,
    disks::way_back,
}
