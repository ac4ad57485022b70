//! Where an instruction belongs: one of our crates, the driver's libraries, the C library.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where an instruction belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
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

impl Place {
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
        const CRATES: [(&str, Place); 3] = [
            ("san_switch::", Place::Switch),
            ("san_provider::", Place::Provider),
            ("verbs_shim::", Place::VerbsShim),
        ];
        // The first named counts: `<san_provider::a as core::ops::Drop>::drop`.
        let named = CRATES
            .iter()
            .filter_map(|(name, place)| Some((function.find(name)?, *place)));
        named.min().map_or(Self::Rest, |(_, place)| place)
    }
}

/// Instructions by place.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost(pub BTreeMap<Place, f64>);

impl Cost {
    /// Of one place.
    #[must_use]
    pub fn of(&self, place: Place) -> f64 {
        self.0.get(&place).copied().unwrap_or(0.0)
    }

    /// Of several together.
    #[must_use]
    pub fn sum(&self, places: &[Place]) -> f64 {
        places.iter().map(|&place| self.of(place)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_belongs_to_the_first_crate_in_its_name() {
        for (function, place) in [
            (
                "san_provider::transfer::Connection::release",
                Place::Provider,
            ),
            (
                "<verbs_shim::rdma::qp::Qp as core::ops::Drop>::drop",
                Place::VerbsShim,
            ),
            (
                "core::ptr::drop_in_place<san_switch::Stream>",
                Place::Switch,
            ),
            (
                "<alloc::vec::Vec<san_provider::A> as verbs_shim::B>::c",
                Place::Provider,
            ),
            ("alloc::sync::Arc<T,A>::drop_slow", Place::Rest),
            ("instructions::ends::ping", Place::Rest),
        ] {
            assert_eq!(
                Place::of("/x/instructions", function, "instructions"),
                place,
                "{function}"
            );
        }
    }

    #[test]
    fn a_library_is_known_by_its_file() {
        for (object, place) in [
            (
                "/lib/x86_64-linux-gnu/librdmacm.so.1.3.44.0",
                Place::Librdmacm,
            ),
            (
                "/lib/x86_64-linux-gnu/libibverbs.so.1.14.44.0",
                Place::Driver,
            ),
            (
                "/usr/lib/x86_64-linux-gnu/libibverbs/librxe-rdmav34.so",
                Place::Driver,
            ),
            ("/lib/x86_64-linux-gnu/libc.so.6", Place::Libc),
            ("/lib64/ld-linux-x86-64.so.2", Place::Libc),
            ("/lib/x86_64-linux-gnu/libnl-3.so.200", Place::Other),
            ("", Place::Other),
        ] {
            assert_eq!(
                Place::of(object, "san_provider::x", "instructions"),
                place,
                "{object}"
            );
        }
    }
}
