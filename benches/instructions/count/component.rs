//! Where an instruction belongs: one of our crates, the driver's libraries, the C library.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where an instruction belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// The crate `san_switch`.
    Switch,
    /// The crate `san_provider`.
    Provider,
    /// The crate `verbs_shim`.
    VerbsShim,
    /// What else our binary has: the standard library, other crates, this bench's loop.
    Rest,
    /// librdmacm, which has rsockets too.
    Librdmacm,
    /// libibverbs and the provider library of the device.
    Driver,
    /// The C library and the dynamic linker.
    Libc,
    /// Anything else.
    Other,
}

impl Component {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 8] = [
        Self::Switch,
        Self::Provider,
        Self::VerbsShim,
        Self::Rest,
        Self::Librdmacm,
        Self::Driver,
        Self::Libc,
        Self::Other,
    ];

    /// Those in our binary.
    pub const OURS: [Self; 4] = [Self::Switch, Self::Provider, Self::VerbsShim, Self::Rest];

    /// Its name in tables and in the file of ceilings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Provider => "provider",
            Self::VerbsShim => "verbs-shim",
            Self::Rest => "rest",
            Self::Librdmacm => "librdmacm",
            Self::Driver => "driver",
            Self::Libc => "libc",
            Self::Other => "other",
        }
    }

    /// Where a function belongs, by the file it was loaded from and its demangled name. Inlined code belongs to the
    /// function it was inlined into. What the standard library does for a type of ours, as its destructor, is ours.
    #[must_use]
    pub fn of(object: &str, function: &str, program: &str) -> Self {
        let file = object.rsplit('/').next().unwrap_or(object);
        if file == program {
            return Self::of_symbol(function);
        }
        match file {
            _ if file.starts_with("librdmacm") => Self::Librdmacm,
            _ if file.starts_with("libibverbs") || file.contains("-rdmav") => Self::Driver,
            _ if file.starts_with("libc.") || file.starts_with("libc-") => Self::Libc,
            _ if file.starts_with("ld-linux") || file.starts_with("libpthread") => Self::Libc,
            _ => Self::Other,
        }
    }

    fn of_symbol(function: &str) -> Self {
        const CRATES: [(&str, Component); 3] = [
            ("san_switch::", Component::Switch),
            ("san_provider::", Component::Provider),
            ("verbs_shim::", Component::VerbsShim),
        ];
        // The first named counts: `<san_provider::a as core::ops::Drop>::drop`.
        let named = CRATES
            .iter()
            .filter_map(|(name, component)| Some((function.find(name)?, *component)));
        named.min().map_or(Self::Rest, |(_, component)| component)
    }
}

/// Instructions by component.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost(pub BTreeMap<Component, f64>);

impl Cost {
    /// Of one component.
    #[must_use]
    pub fn of(&self, component: Component) -> f64 {
        self.0.get(&component).copied().unwrap_or(0.0)
    }

    /// Of several together.
    #[must_use]
    pub fn sum(&self, components: &[Component]) -> f64 {
        components.iter().map(|&component| self.of(component)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_belongs_to_the_first_crate_in_its_name() {
        for (function, component) in [
            (
                "san_provider::transfer::Connection::release",
                Component::Provider,
            ),
            (
                "<verbs_shim::rdma::qp::Qp as core::ops::Drop>::drop",
                Component::VerbsShim,
            ),
            (
                "core::ptr::drop_in_place<san_switch::Stream>",
                Component::Switch,
            ),
            (
                "<alloc::vec::Vec<san_provider::A> as verbs_shim::B>::c",
                Component::Provider,
            ),
            ("alloc::sync::Arc<T,A>::drop_slow", Component::Rest),
            ("instructions::ends::ping", Component::Rest),
        ] {
            assert_eq!(
                Component::of("/x/instructions", function, "instructions"),
                component,
                "{function}"
            );
        }
    }

    #[test]
    fn a_library_is_known_by_its_file() {
        for (object, component) in [
            (
                "/lib/x86_64-linux-gnu/librdmacm.so.1.3.44.0",
                Component::Librdmacm,
            ),
            (
                "/lib/x86_64-linux-gnu/libibverbs.so.1.14.44.0",
                Component::Driver,
            ),
            (
                "/usr/lib/x86_64-linux-gnu/libibverbs/librxe-rdmav34.so",
                Component::Driver,
            ),
            ("/lib/x86_64-linux-gnu/libc.so.6", Component::Libc),
            ("/lib64/ld-linux-x86-64.so.2", Component::Libc),
            ("/lib/x86_64-linux-gnu/libnl-3.so.200", Component::Other),
            ("", Component::Other),
        ] {
            assert_eq!(
                Component::of(object, "san_provider::x", "instructions"),
                component,
                "{object}"
            );
        }
    }
}
