//! Reads a `curl` line as printed for users, and carries it out without curl.

use std::net::SocketAddr;
use std::path::Path;

use super::http::{self, Answer};

/// What a `curl` line asks for.
#[derive(Debug, Default, PartialEq)]
pub struct Curl {
    /// The method.
    pub method: String,
    /// The host and port of the URL.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// The headers given.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Curl {
    /// Reads a line; files named by `@` are relative to `folder`.
    pub fn read(line: &str, folder: &Path) -> Self {
        let mut curl = Self::default();
        let mut words = words(line).into_iter().skip_while(|word| word != "curl").skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "-X" | "--request" => curl.method = words.next().unwrap(),
                "-H" | "--header" => {
                    let header = words.next().unwrap();
                    let (name, value) = header.split_once(':').unwrap();
                    curl.headers.push((name.trim().to_owned(), value.trim().to_owned()));
                }
                "-d" | "--data" | "--data-binary" | "--data-raw" => {
                    let data = words.next().unwrap();
                    curl.body = match data.strip_prefix('@') {
                        Some(file) => std::fs::read(folder.join(file)).unwrap(),
                        None => data.into_bytes(),
                    };
                    if curl.method.is_empty() {
                        "POST".clone_into(&mut curl.method);
                    }
                }
                flag if flag.starts_with('-') => {}
                url => {
                    let rest = url.strip_prefix("http://").unwrap_or(url);
                    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
                    host.clone_into(&mut curl.host);
                    curl.path = format!("/{path}");
                }
            }
        }
        if curl.method.is_empty() {
            "GET".clone_into(&mut curl.method);
        }
        let typed = curl.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        if !curl.body.is_empty() && !typed {
            curl.headers.push(("Content-Type".into(), "application/x-www-form-urlencoded".into()));
        }
        curl
    }

    /// Sends it, to `address` whatever the line says.
    #[track_caller]
    pub fn send(&self, address: SocketAddr) -> Answer {
        let headers: Vec<(&str, &[u8])> =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        http::once(address, &self.method, &self.path, &headers, &self.body).expect("an answer")
    }
}

/// The commands of all shell blocks of a page.
pub fn shell_lines(page: &str) -> Vec<String> {
    let blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines = blocks.flat_map(|block| block.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>());
    lines.filter(|line| !line.is_empty()).collect()
}

/// `for n in 1 2; do COMMAND; done` is the command with 1 and with 2 for `$n`; anything else is itself.
pub fn unlooped(line: &str) -> Vec<String> {
    let Some((head, rest)) = line.strip_prefix("for ").and_then(|rest| rest.split_once("; do ")) else {
        return vec![line.to_owned()];
    };
    let (name, words) = head.split_once(" in ").unwrap();
    let command = rest.strip_suffix("; done").unwrap();
    words.split(' ').map(|word| command.replace(&format!("${name}"), word)).collect()
}

/// Splits as a shell does: quotes, backslashes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut started) = (Vec::new(), String::new(), false);
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match (char, quote) {
            (quoted, Some(mark)) if quoted == mark => quote = None,
            ('\\', Some('"') | None) => word.extend(chars.next().filter(|next| *next != '\n')),
            ('\'' | '"', None) => {
                quote = Some(char);
                started = true;
            }
            (space, None) if space.is_whitespace() => {
                if started || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                started = false;
            }
            _ => word.push(char),
        }
    }
    if started || !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_its_command_for_each_word() {
        let page =
            "text\n```sh\nfor n in 1 2; do curl http://x/ \\\n -d \"job $n\"; done\n\nstagepost status\n```\nmore\n";
        let lines = shell_lines(page);
        assert_eq!(lines.len(), 2);
        assert_eq!(unlooped(&lines[0]), [1, 2].map(|n| format!("curl http://x/   -d \"job {n}\"")));
        assert_eq!(unlooped(&lines[1]), ["stagepost status"]);
    }

    #[test]
    fn a_curl_line_is_read_as_a_shell_and_curl_would() {
        let line = "  curl -i http://127.0.0.1:8080/a/b?c=1 \\\n -H 'Company: WSO2' -d '{ \"a\": \"it\\s\" }'";
        let curl = Curl::read(line, Path::new("."));
        assert_eq!(
            (curl.method.as_str(), curl.host.as_str(), curl.path.as_str()),
            ("POST", "127.0.0.1:8080", "/a/b?c=1")
        );
        assert_eq!(curl.headers[0], ("Company".into(), "WSO2".into()));
        assert_eq!(curl.body, br#"{ "a": "it\s" }"#);
    }
}
