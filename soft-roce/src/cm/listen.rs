//! Listeners: which request goes to whom.
//!
//! What it does: addresses and ports, exact before wildcard; the backlog.
//! What it does not do: ports that are bound without listening; the endpoint's
//! table of ids has them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use super::{CmError, ListenKey};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Scope {
    Exact(IpAddr),
    AnyV4,
    AnyV6,
}

#[derive(Debug)]
struct Listener {
    backlog: usize,
    /// Requests told to the user and not yet taken over by it.
    waiting: usize,
    scopes: Vec<(u16, Scope)>,
}

/// All listeners.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    by_key: HashMap<ListenKey, Listener>,
    by_scope: HashMap<(u16, Scope), ListenKey>,
    next: u64,
}

/// What became of a request's attempt to join a backlog.
pub(super) enum Admission {
    Granted(ListenKey),
    Nobody,
    Full,
}

impl Listeners {
    pub(super) fn add(
        &mut self,
        addr: SocketAddr,
        v6_only: bool,
        backlog: usize,
    ) -> Result<ListenKey, CmError> {
        let port = addr.port();
        let scopes: Vec<_> = match addr.ip().to_canonical() {
            IpAddr::V4(ip) if ip.is_unspecified() => vec![(port, Scope::AnyV4)],
            IpAddr::V6(ip) if ip.is_unspecified() && v6_only => vec![(port, Scope::AnyV6)],
            IpAddr::V6(ip) if ip.is_unspecified() => {
                vec![(port, Scope::AnyV6), (port, Scope::AnyV4)]
            }
            ip => vec![(port, Scope::Exact(ip))],
        };
        if self
            .by_scope
            .keys()
            .any(|have| scopes.iter().any(|want| collide(*have, *want)))
        {
            return Err(CmError::InUse);
        }
        self.next += 1;
        let key = ListenKey(self.next);
        for scope in &scopes {
            self.by_scope.insert(*scope, key);
        }
        let listener = Listener {
            backlog: backlog.max(1),
            waiting: 0,
            scopes,
        };
        self.by_key.insert(key, listener);
        Ok(key)
    }

    pub(super) fn remove(&mut self, key: ListenKey) {
        for scope in self.by_key.remove(&key).into_iter().flat_map(|l| l.scopes) {
            self.by_scope.remove(&scope);
        }
    }

    /// Finds the listener for a request and takes a place in its backlog.
    pub(super) fn admit(&mut self, ip: IpAddr, port: u16) -> Admission {
        let ip = ip.to_canonical();
        let any = if ip.is_ipv4() {
            Scope::AnyV4
        } else {
            Scope::AnyV6
        };
        let found = self.by_scope.get(&(port, Scope::Exact(ip)));
        let Some(key) = found.or_else(|| self.by_scope.get(&(port, any))).copied() else {
            return Admission::Nobody;
        };
        match self.by_key.get_mut(&key) {
            Some(listener) if listener.waiting < listener.backlog => {
                listener.waiting += 1;
                Admission::Granted(key)
            }
            Some(_) => Admission::Full,
            None => Admission::Nobody,
        }
    }

    /// Gives a place in a backlog back.
    pub(super) fn release(&mut self, key: ListenKey) {
        if let Some(listener) = self.by_key.get_mut(&key) {
            listener.waiting = listener.waiting.saturating_sub(1);
        }
    }
}

/// Whether two listeners would claim the same requests. A wildcard claims all
/// addresses of its family, as for `rdma_cm`.
fn collide(a: (u16, Scope), b: (u16, Scope)) -> bool {
    let claims = |wide: Scope, other: Scope| match (wide, other) {
        (Scope::AnyV4, Scope::Exact(ip)) => ip.is_ipv4(),
        (Scope::AnyV6, Scope::Exact(ip)) => ip.is_ipv6(),
        (a, b) => a == b,
    };
    a.0 == b.0 && (claims(a.1, b.1) || claims(b.1, a.1))
}
