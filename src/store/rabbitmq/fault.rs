//! Why a connect failed, from what the client library, TLS or the system said.

use std::error::Error;
use std::io;

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

use crate::store::{Fault, StoreError};

/// The class, and the text for logs.
pub(super) fn unreachable(error: &lapin::Error) -> StoreError {
    let detail = error.to_string();
    let fault = match error.kind() {
        ErrorKind::ProtocolError(amqp) => match amqp.kind() {
            // A virtual host that is not there, or not for this user.
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if detail.contains("not found") => Fault::NotFound,
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) | AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => {
                Fault::AuthenticationFailed
            }
            _ => Fault::Refused,
        },
        ErrorKind::IOError(error) => of_io(error),
        ErrorKind::MissingHeartbeatError => Fault::TimedOut,
        _ => Fault::Refused,
    };
    StoreError::Unreachable { fault, detail }
}

fn of_io(error: &io::Error) -> Fault {
    if error.get_ref().is_some_and(<dyn Error + Send + Sync>::is::<rustls::Error>) {
        return Fault::TlsFailed;
    }
    match error.kind() {
        io::ErrorKind::TimedOut => Fault::TimedOut,
        io::ErrorKind::NotFound => Fault::NotFound,
        _ => Fault::Refused,
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;

    fn fault(error: &lapin::Error) -> Fault {
        match unreachable(error) {
            StoreError::Unreachable { fault, .. } => fault,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn what_a_broker_says_has_its_class() {
        let amqp = |kind: AMQPErrorKind, text: &str| {
            fault(&ErrorKind::ProtocolError(AMQPError::new(kind, text.into())).into())
        };
        let refused = AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED);
        assert_eq!(amqp(refused, "ACCESS_REFUSED - Login was refused"), Fault::AuthenticationFailed);
        let not_allowed = || AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED);
        assert_eq!(amqp(not_allowed(), "NOT_ALLOWED - vhost shop not found"), Fault::NotFound);
        let other = "NOT_ALLOWED - access to vhost 'shop' refused for user 'u'";
        assert_eq!(amqp(not_allowed(), other), Fault::AuthenticationFailed);
    }

    #[test]
    fn what_the_system_and_tls_say_has_its_class() {
        let io = |error: io::Error| fault(&error.into());
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        assert_eq!(io(io::Error::new(io::ErrorKind::InvalidData, tls)), Fault::TlsFailed);
        assert_eq!(io(io::ErrorKind::TimedOut.into()), Fault::TimedOut);
        assert_eq!(io(io::ErrorKind::ConnectionRefused.into()), Fault::Refused);
        assert_eq!(io(io::Error::new(io::ErrorKind::NotFound, "no such host")), Fault::NotFound);
    }
}
