//! The socket to a broker: plain or TLS, never TLS that fell back to plain.

use std::io;
use std::time::Duration;

use async_compat::{Compat, CompatExt};
use lapin::tcp::{AsyncTcpStream, RustlsConnector, RustlsConnectorConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::address::Tls;

/// A plain or TLS connection.
pub(super) type Socket = Compat<AsyncTcpStream<Compat<TcpStream>>>;

/// For one address of a host; a third of what a whole connect may take.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);

/// Makes the TLS side of a connection from its PEM material. The error names the key at fault.
pub(super) fn connector(tls: &Tls) -> Result<RustlsConnector, String> {
    let certificates = |pem: &[u8], key: &str| -> Result<Vec<CertificateDer<'static>>, String> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        match found {
            Ok(found) if !found.is_empty() => Ok(found),
            Ok(_) => Err(format!("`{key}` holds no PEM certificate")),
            Err(error) => Err(format!("`{key}` can't be read: {error}")),
        }
    };
    let config = match &tls.ca {
        // A CA of one's own stands alone: certificates of the public ones must not open this door.
        Some(pem) => {
            let mut config = RustlsConnectorConfig::default();
            config.add_parsable_certificates(certificates(pem, "ca.crt")?);
            config
        }
        None => RustlsConnectorConfig::new_with_platform_verifier(),
    };
    match &tls.identity {
        Some((chain, key)) => {
            let chain = certificates(chain, "tls.crt")?;
            let key =
                PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("`tls.key` can't be read: {error}"))?;
            config.connector_with_single_cert(chain, key)
        }
        None => config.connector_with_no_client_auth(),
    }
    .map_err(|error| format!("{error}"))
}

/// Connects, and shakes hands where TLS is asked for.
pub(super) async fn stream(
    target: (&str, u16),
    connector: Option<&RustlsConnector>,
    server_name: &str,
) -> io::Result<Socket> {
    let socket = connect(target).await?;
    // Confirms and acknowledgements are small and waited for.
    socket.set_nodelay(true)?;
    let plain = AsyncTcpStream::Plain(socket.compat());
    let socket = match connector {
        Some(connector) => plain.into_rustls(connector, server_name).await?,
        None => plain,
    };
    Ok(socket.compat())
}

/// Tries each address of a name for its share of the time: the first may be one that swallows packets.
async fn connect(target: (&str, u16)) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    let unknown = |error| io::Error::new(io::ErrorKind::NotFound, format!("{}: {error}", target.0));
    for address in tokio::net::lookup_host(target).await.map_err(unknown)? {
        match timeout(ADDRESS_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}
