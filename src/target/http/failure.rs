//! What failures mean, and how they read: one short line, the cause first.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError, Error as TlsError, PeerIncompatible};

use super::connection::{MAX_HEAD, MAX_HEADER_LINES};
use crate::core::outcome::Outcome;

/// A connect that failed.
pub(super) fn of_connect(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset while connecting".to_owned(),
        io::ErrorKind::HostUnreachable => "host unreachable".to_owned(),
        io::ErrorKind::NetworkUnreachable => "network unreachable".to_owned(),
        io::ErrorKind::TimedOut => "connect timed out".to_owned(),
        _ => format!("connect: {}", lower(&error.to_string())),
    }
}

/// A TLS handshake that failed.
pub(super) fn of_handshake(error: &io::Error) -> String {
    match find::<TlsError>(error) {
        Some(error) => of_tls(error),
        None => match error.kind() {
            io::ErrorKind::UnexpectedEof => "connection closed during the handshake".to_owned(),
            io::ErrorKind::ConnectionReset => "connection reset during the handshake".to_owned(),
            _ => lower(&error.to_string()),
        },
    }
}

fn of_tls(error: &TlsError) -> String {
    match error {
        TlsError::InvalidCertificate(reason) => of_certificate(reason),
        TlsError::AlertReceived(alert) => of_alert(*alert),
        TlsError::InvalidMessage(_) => "the target does not speak TLS on this port".to_owned(),
        TlsError::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => "the target speaks only TLS older than 1.2".to_owned(),
        other => lower(&other.to_string()),
    }
}

fn of_certificate(reason: &CertificateError) -> String {
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "certificate not valid yet".to_owned()
        }
        CertificateError::NotValidForName => "certificate is for another host".to_owned(),
        CertificateError::NotValidForNameContext { expected, .. } => {
            format!("certificate is for another host than `{}`", expected.to_str())
        }
        CertificateError::UnknownIssuer => "certificate has an unknown issuer; set tls.caRef".to_owned(),
        CertificateError::Revoked => "certificate revoked".to_owned(),
        // The usual way here: a private authority was replaced, and its bundle was not.
        CertificateError::BadSignature => {
            "certificate has a bad signature: its issuer has the name, not the key, of ours".to_owned()
        }
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "certificate is self-signed; set tls.caRef".to_owned()
        }
        other => format!("certificate: {}", lower(&other.to_string())),
    }
}

/// What the target says of us.
fn of_alert(alert: AlertDescription) -> String {
    let reason = match alert {
        AlertDescription::CertificateExpired => "our client certificate expired",
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => "it requires a client certificate",
        AlertDescription::UnknownCA => "it does not know the issuer of our client certificate",
        AlertDescription::CertificateRevoked => "our client certificate is revoked",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::DecryptError => "it does not accept our client certificate",
        AlertDescription::AccessDenied => "access denied",
        AlertDescription::UnrecognisedName => "it does not know the server name",
        AlertDescription::ProtocolVersion => "it does not speak TLS 1.2 or later",
        AlertDescription::HandshakeFailure => "no common parameters",
        AlertDescription::NoApplicationProtocol => "it does not speak HTTP/1.1",
        other => return format!("refused by the target: alert {other:?}"),
    };
    format!("refused by the target: {reason}")
}

/// An exchange that ended without a complete head.
///
/// With TLS 1.3 the target judges our certificate after our side of the handshake: its alert comes in place of the
/// answer. Nothing of the request was looked at then, so that is a failed handshake.
pub(super) fn of_exchange(error: &hyper::Error) -> Outcome {
    if let Some(TlsError::AlertReceived(alert)) = find::<TlsError>(error) {
        return Outcome::Tls(of_alert(*alert));
    }
    Outcome::NoResponse(describe(error))
}

/// Why there is no answer.
pub(super) fn describe(error: &hyper::Error) -> String {
    if error.is_parse_too_large() {
        return format!("the response head is over {} KiB or {MAX_HEADER_LINES} lines", MAX_HEAD >> 10);
    }
    if error.is_parse() {
        return format!("malformed response: {}", lower(&error.to_string()));
    }
    if error.is_incomplete_message() {
        return "connection closed before a complete response head".to_owned();
    }
    match find::<io::Error>(error) {
        Some(cause) => match cause.kind() {
            io::ErrorKind::ConnectionReset => "connection reset before a complete response head".to_owned(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                "connection closed before a complete response head".to_owned()
            }
            _ => lower(&cause.to_string()),
        },
        None => lower(&error.to_string()),
    }
}

/// The first error of this type in the chain of causes, also inside of I/O errors.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut current = Some(error);
    while let Some(error) = current {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        current = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// Error texts are in lower case.
fn lower(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}
