//! The switch that is measured: as its users have it, but for the spinning.

use std::time::Duration;

use san_provider::{Provider, ProviderConfig};
use san_switch::{Switch, SwitchBuilder, SwitchConfig};

use crate::Result;

/// A switch whose one provider is started as the switch starts its own, but spins for so long.
///
/// # Errors
/// What the provider or the switch says: no device, no memory.
pub fn with_spin(spin: Duration) -> Result<Switch> {
    let settings = SwitchConfig::default();
    let own = ProviderConfig {
        spin,
        ..SwitchBuilder::provider_config(&settings)
    };
    let builder = Switch::builder().config(settings);
    Ok(builder.provider("rdma", Provider::new(own)?).build()?)
}
