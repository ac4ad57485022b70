//! The providers of one switch, by their numbers.

use std::sync::{Arc, PoisonError, RwLock};

use super::provider::StartedProvider;

/// The providers, in the order of their registration. None leaves before the switch ends.
#[derive(Debug, Default)]
pub(crate) struct Providers(RwLock<Vec<Arc<StartedProvider>>>);

impl Providers {
    pub(crate) fn all(&self) -> Vec<Arc<StartedProvider>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn nth(&self, number: usize) -> Option<Arc<StartedProvider>> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(number).cloned()
    }

    /// A provider's name; empty if there is no such provider.
    pub(crate) fn name(&self, number: usize) -> String {
        self.nth(number)
            .map_or_else(String::new, |one| one.name.clone())
    }

    pub(crate) fn add(&self, provider: Arc<StartedProvider>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.push(provider);
    }
}
