//! Socket options (duties 13, 15, 39, 40, 97).

use super::settings::Options;
use super::shared::Socket;
use super::state::Phase;
use crate::error::OptionError;
use crate::sync::lock;

/// An option of a socket. Values are numbers; a switch is 0 or 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SocketOption {
    /// Bytes of the largest message that can be sent: of a connected socket what its peer takes,
    /// before that what this provider would take. Cannot be set.
    #[doc(alias = "SO_MAX_MSG_SIZE")]
    MaxMessageSize,
    /// Bytes of the largest RDMA transfer: of a connected socket what both sides and the device
    /// allow, before that what is configured. Cannot be set.
    #[doc(alias = "SO_MAX_RDMA_SIZE")]
    MaxRdmaSize,
    /// From how many bytes on RDMA is better than messages. A hint; may be set to any value up to
    /// [`SocketOption::MaxRdmaSize`].
    #[doc(alias = "SO_RDMA_THRESHOLD_SIZE")]
    RdmaThresholdSize,
    /// How many requests a listening socket holds; 0 if it does not listen. Cannot be set: listen
    /// does.
    Backlog,
    /// The port may be bound while older connections of it are dying. Before bind.
    #[doc(alias = "SO_REUSEADDR")]
    ReuseAddr,
    /// An IPv6 wildcard listener leaves IPv4 to others. On unless set otherwise; before bind.
    #[doc(alias = "IPV6_V6ONLY")]
    V6Only,
    /// The type of service of the connection's packets. Before connect.
    #[doc(alias = "IP_TOS")]
    TypeOfService,
}

impl Socket {
    /// Reads an option.
    ///
    /// # Errors
    /// `WSAENOTSOCK`, `WSANOTINITIALISED`.
    #[doc(alias = "WSPGetSockOpt")]
    pub fn option(&self, option: SocketOption) -> Result<u32, OptionError> {
        let socket = &*self.shared;
        let config = &socket.runtime.config;
        let options = self.options()?;
        Ok(match option {
            SocketOption::MaxMessageSize => match socket.connection().map(|c| c.send_limit()) {
                None | Some(0) => config.max_message_size,
                Some(limit) => u32::try_from(limit).unwrap_or(u32::MAX),
            },
            SocketOption::MaxRdmaSize => match socket.connection().map(|c| c.rdma_limit()) {
                None | Some(0) => config.max_rdma_size,
                Some(limit) => u32::try_from(limit).unwrap_or(u32::MAX),
            },
            SocketOption::RdmaThresholdSize => {
                options.rdma_threshold.unwrap_or(config.rdma_threshold)
            }
            SocketOption::Backlog => socket.backlog.get().map_or(0, |backlog| {
                u32::try_from(lock(backlog).limit()).unwrap_or(u32::MAX)
            }),
            SocketOption::ReuseAddr => u32::from(options.reuse_addr),
            SocketOption::V6Only => u32::from(options.v6_only),
            SocketOption::TypeOfService => u32::from(options.tos.unwrap_or(0)),
        })
    }

    /// Sets an option.
    ///
    /// # Errors
    /// `WSAENOPROTOOPT`: it cannot be set. `WSAEINVAL`: a value out of range, or too late.
    /// `WSAENOTSOCK`, `WSANOTINITIALISED`.
    #[doc(alias = "WSPSetSockOpt")]
    pub fn set_option(&self, option: SocketOption, value: u32) -> Result<(), OptionError> {
        self.options()?;
        let mut state = lock(&self.shared.state);
        let is_switch = || match value {
            0 | 1 => Ok(value == 1),
            _ => Err(OptionError::Value { value }),
        };
        let before_bind = match state.phase {
            Phase::Open => Ok(()),
            _ => Err(OptionError::TooLate),
        };
        match option {
            SocketOption::MaxMessageSize | SocketOption::MaxRdmaSize | SocketOption::Backlog => {
                return Err(OptionError::ReadOnly);
            }
            SocketOption::RdmaThresholdSize => {
                if value > self.shared.runtime.config.max_rdma_size {
                    return Err(OptionError::Value { value });
                }
                state.options.rdma_threshold = Some(value);
            }
            SocketOption::ReuseAddr => {
                before_bind?;
                state.options.reuse_addr = is_switch()?;
            }
            SocketOption::V6Only => {
                before_bind?;
                state.options.v6_only = is_switch()?;
            }
            SocketOption::TypeOfService => {
                if !matches!(state.phase, Phase::Open | Phase::Bound) {
                    return Err(OptionError::TooLate);
                }
                let tos = u8::try_from(value).map_err(|_| OptionError::Value { value })?;
                state.options.tos = Some(tos);
            }
        }
        Ok(())
    }

    fn options(&self) -> Result<Options, OptionError> {
        self.shared.runtime.usable()?;
        let state = lock(&self.shared.state);
        match state.phase {
            Phase::Closed => Err(OptionError::NotSocket),
            _ => Ok(state.options),
        }
    }
}
