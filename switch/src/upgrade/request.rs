//! What both ends of a TCP connection say of it when one dials the other over the SAN: the session in
//! request and reply (`docs/protocol.md`).
//!
//! Each side proves that it means this TCP connection: its code is over both addresses, the nonces,
//! the generation and, where it has read so far, the first bytes that it read from the other. With a
//! configured key nobody else can make the codes. Without one, the frames on TCP prove the rest.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use hmac::Mac as _;
use san_provider::wire::Session;
use san_stream::Role;

use super::key::{DeploymentKey, ExcursionKey};

/// The purpose of such a session: the second carrier of a TCP connection.
pub(crate) const PURPOSE: u8 = 1;

/// Flag: the code is also over the first bytes that its maker read from the other end.
const WITH_BEGINNING: u8 = 1;
/// Flag: the code was made under a configured key.
const KEYED: u8 = 2;

/// How many of them.
pub(crate) const BEGINNING: usize = 64;

/// The two ends of the TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    /// Whose process called connect.
    pub(crate) connector: SocketAddr,
    /// Whose process called accept.
    pub(crate) acceptor: SocketAddr,
}

/// The first bytes of both directions, as far as this end has them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beginnings<'a> {
    /// The first bytes that this end wrote; all of its first [`BEGINNING`], or fewer if it wrote less.
    pub(crate) written: &'a [u8],
    /// The first bytes that this end read.
    pub(crate) read: &'a [u8],
}

/// What is wrong with the other end's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unproven {
    /// It is about something else.
    OtherPurpose,
    /// Its port is not the one of the TCP connection.
    OtherPort,
    /// It is about another life of the TCP connection than the one that was dialled for.
    OtherGeneration,
    /// It has no nonce.
    NoNonce,
    /// One end has a configured key and the other has none.
    KeyOnOneSide,
    /// It speaks of bytes that this end has not written.
    NothingWritten,
    /// The code is not that of this connection under this key.
    WrongProof,
}

impl fmt::Display for Unproven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherPurpose => "the request is not about a TCP connection",
            Self::OtherPort => "the peer names another TCP port",
            Self::OtherGeneration => "the peer answers another request",
            Self::NoNonce => "the peer has sent no nonce",
            Self::KeyOnOneSide => "only one end has a key (SAN_KEY)",
            Self::NothingWritten => "the peer speaks of bytes that were not written",
            Self::WrongProof => "the peer's proof is wrong: another connection, or another SAN_KEY",
        })
    }
}

impl std::error::Error for Unproven {}

/// A request under way: what the dialling end remembers of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dialled {
    ends: Ends,
    nonce: u64,
    generation: u16,
}

/// What an answered request comes to.
#[derive(Debug, Clone)]
pub(crate) struct Agreed {
    pub(crate) key: ExcursionKey,
    pub(crate) generation: u16,
}

impl Ends {
    fn port(&self, role: Role) -> u16 {
        match role {
            Role::Connector => self.connector.port(),
            Role::Acceptor => self.acceptor.port(),
        }
    }
}

/// The accepting end's request; `nonce` is random and not 0.
pub(crate) fn request(
    key: &DeploymentKey,
    ends: Ends,
    generation: u16,
    nonce: u64,
    beginnings: &Beginnings<'_>,
) -> (Dialled, Session) {
    let dialled = Dialled {
        ends,
        nonce,
        generation,
    };
    let said = Said {
        key,
        ends,
        role: Role::Acceptor,
        generation,
        nonces: (nonce, 0),
    };
    (dialled, said.session(beginnings))
}

/// The connecting end's answer to a request that was taken for this TCP connection; `nonce` is
/// random and not 0.
pub(crate) fn answer(
    key: &DeploymentKey,
    ends: Ends,
    request: &Session,
    nonce: u64,
    beginnings: &Beginnings<'_>,
) -> Result<(Agreed, Session), Unproven> {
    let said = Said {
        key,
        ends,
        role: Role::Acceptor,
        generation: request.generation,
        nonces: (request.id, 0),
    };
    said.check(request, beginnings)?;
    let said = Said {
        role: Role::Connector,
        nonces: (request.id, nonce),
        ..said
    };
    Ok((said.agreed(), said.session(beginnings)))
}

/// Whether the reply is the connecting end's.
pub(crate) fn confirm(
    key: &DeploymentKey,
    dialled: &Dialled,
    reply: &Session,
    beginnings: &Beginnings<'_>,
) -> Result<Agreed, Unproven> {
    let said = Said {
        key,
        ends: dialled.ends,
        role: Role::Connector,
        generation: dialled.generation,
        nonces: (dialled.nonce, reply.id),
    };
    said.check(reply, beginnings)?;
    Ok(said.agreed())
}

/// All that the code of one end is over, but for the beginning.
#[derive(Clone, Copy)]
struct Said<'a> {
    key: &'a DeploymentKey,
    ends: Ends,
    /// Whose code it is.
    role: Role,
    generation: u16,
    /// The acceptor's and the connector's; 0 for one that is not known yet.
    nonces: (u64, u64),
}

impl Said<'_> {
    fn agreed(&self) -> Agreed {
        Agreed {
            key: ExcursionKey::new(self.key, self.nonces.0, self.nonces.1),
            generation: self.generation,
        }
    }

    fn nonce(&self) -> u64 {
        match self.role {
            Role::Connector => self.nonces.1,
            Role::Acceptor => self.nonces.0,
        }
    }

    /// The session that this end sends.
    fn session(&self, beginnings: &Beginnings<'_>) -> Session {
        let read = beginnings.read.first_chunk::<BEGINNING>();
        let mut flags = if self.key.is_set() { KEYED } else { 0 };
        if read.is_some() {
            flags |= WITH_BEGINNING;
        }
        let code = self.code(flags, read.map_or(&[], |read| read));
        let code = code.finalize().into_bytes();
        Session::with_id(self.nonce())
            .secret(std::array::from_fn(|at| code[at]))
            .purpose(PURPOSE)
            .flags(flags)
            .tcp_port(self.ends.port(self.role))
            .generation(self.generation)
    }

    /// Whether this session is the other end's.
    fn check(&self, session: &Session, beginnings: &Beginnings<'_>) -> Result<(), Unproven> {
        if session.purpose != PURPOSE {
            return Err(Unproven::OtherPurpose);
        }
        if session.tcp_port != self.ends.port(self.role) {
            return Err(Unproven::OtherPort);
        }
        if session.generation != self.generation {
            return Err(Unproven::OtherGeneration);
        }
        if session.id == 0 {
            return Err(Unproven::NoNonce);
        }
        if (session.flags & KEYED != 0) != self.key.is_set() {
            return Err(Unproven::KeyOnOneSide);
        }
        // What the other end read is what this end wrote.
        let read = match session.flags & WITH_BEGINNING {
            0 => &[][..],
            _ => beginnings
                .written
                .first_chunk::<BEGINNING>()
                .ok_or(Unproven::NothingWritten)?,
        };
        self.code(session.flags, read)
            .verify_truncated_left(&session.secret)
            .map_err(|_| Unproven::WrongProof)
    }

    fn code(&self, flags: u8, read: &[u8]) -> hmac::Hmac<sha2::Sha256> {
        let mut code = self.key.begin();
        code.update(b"session");
        code.update(&[self.role as u8, flags]);
        code.update(&self.generation.to_be_bytes());
        code.update(&self.nonces.0.to_be_bytes());
        code.update(&self.nonces.1.to_be_bytes());
        for end in [self.ends.connector, self.ends.acceptor] {
            let ip = match end.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            code.update(&ip.octets());
            code.update(&end.port().to_be_bytes());
        }
        code.update(read);
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use san_stream::Mac;

    const REQUEST: [u8; BEGINNING] = [b'q'; BEGINNING];
    const REPLY: [u8; BEGINNING] = [b'r'; BEGINNING];

    fn ends() -> Ends {
        Ends {
            connector: "10.0.7.2:50123".parse().unwrap(),
            acceptor: "10.0.7.1:6379".parse().unwrap(),
        }
    }

    fn with_id(mut session: Session, id: u64) -> Session {
        session.id = id;
        session
    }

    fn at_acceptor() -> Beginnings<'static> {
        Beginnings {
            written: &REPLY,
            read: &REQUEST,
        }
    }

    fn at_connector() -> Beginnings<'static> {
        Beginnings {
            written: &REQUEST,
            read: &REPLY,
        }
    }

    fn dial(key: &DeploymentKey) -> (Dialled, Session) {
        request(key, ends(), 3, 11, &at_acceptor())
    }

    #[test]
    fn both_ends_of_a_connection_agree_on_a_key() {
        for key in [DeploymentKey::default(), DeploymentKey::new(b"k")] {
            let (dialled, asked) = dial(&key);
            let (there, said) = answer(&key, ends(), &asked, 22, &at_connector()).unwrap();
            let here = confirm(&key, &dialled, &said, &at_acceptor()).unwrap();
            assert_eq!((here.generation, there.generation), (3, 3));
            assert_eq!(here.key.mac(b"tag"), there.key.mac(b"tag"));
        }
    }

    #[test]
    fn who_has_read_little_proves_without_it() {
        let key = DeploymentKey::default();
        let few = Beginnings {
            written: &REPLY[..3],
            read: &REQUEST[..63],
        };
        let (dialled, asked) = request(&key, ends(), 1, 11, &few);
        assert_eq!(asked.flags, 0);
        let nothing = Beginnings {
            written: &[],
            read: &[],
        };
        let (_, said) = answer(&key, ends(), &asked, 22, &nothing).unwrap();
        confirm(&key, &dialled, &said, &few).unwrap();
    }

    #[test]
    fn what_is_about_another_connection_is_refused() {
        let key = DeploymentKey::default();
        let (_, asked) = dial(&key);
        let refused = |session: &Session, ends, beginnings: &Beginnings<'_>| {
            answer(&key, ends, session, 22, beginnings).unwrap_err()
        };
        let here = at_connector();
        assert_eq!(
            refused(&asked.purpose(0), ends(), &here),
            Unproven::OtherPurpose
        );
        assert_eq!(
            refused(&asked.tcp_port(6380), ends(), &here),
            Unproven::OtherPort
        );
        assert_eq!(
            refused(&with_id(asked, 0), ends(), &here),
            Unproven::NoNonce
        );
        let address = Ends {
            connector: "10.0.7.3:50123".parse().unwrap(),
            ..ends()
        };
        assert_eq!(refused(&asked, address, &here), Unproven::WrongProof);
        for session in [
            asked.generation(4),
            with_id(asked, 12),
            asked.secret([0; 16]),
        ] {
            assert_eq!(refused(&session, ends(), &here), Unproven::WrongProof);
        }
        let wrote_other = Beginnings {
            written: &REPLY,
            ..here
        };
        assert_eq!(refused(&asked, ends(), &wrote_other), Unproven::WrongProof);
        let wrote_little = Beginnings {
            written: &REQUEST[..10],
            ..here
        };
        assert_eq!(
            refused(&asked, ends(), &wrote_little),
            Unproven::NothingWritten
        );
    }

    #[test]
    fn keys_must_be_the_same_on_both_sides() {
        let (one, other) = (DeploymentKey::new(b"one"), DeploymentKey::new(b"other"));
        let none = DeploymentKey::default();
        let (_, asked) = dial(&one);
        let refused = |key| answer(key, ends(), &asked, 22, &at_connector()).unwrap_err();
        assert_eq!(refused(&other), Unproven::WrongProof);
        assert_eq!(refused(&none), Unproven::KeyOnOneSide);
        // Clearing the flag does not help: it is in the code.
        let unkeyed = asked.flags(asked.flags & !KEYED);
        let error = answer(&none, ends(), &unkeyed, 22, &at_connector()).unwrap_err();
        assert_eq!(error, Unproven::WrongProof);
    }

    #[test]
    fn a_reply_must_be_to_this_request() {
        let key = DeploymentKey::default();
        let (dialled, asked) = dial(&key);
        let (_, said) = answer(&key, ends(), &asked, 22, &at_connector()).unwrap();
        let refused = |said: &Session| confirm(&key, &dialled, said, &at_acceptor()).unwrap_err();
        assert_eq!(refused(&said.generation(2)), Unproven::OtherGeneration);
        assert_eq!(
            refused(&asked),
            Unproven::OtherPort,
            "an echo of the request"
        );
        assert_eq!(refused(&with_id(said, 23)), Unproven::WrongProof);
        let (later, _) = request(&key, ends(), 3, 99, &at_acceptor());
        let error = confirm(&key, &later, &said, &at_acceptor()).unwrap_err();
        assert_eq!(error, Unproven::WrongProof, "an old reply");
    }
}
