//! Parses the URLs of settings. An error names the wrong part and never quotes it, because URLs hold
//! passwords.

use reqwest::Url;

/// The schemes of a Redis URL.
const REDIS: &[&str] = &[
    "redis",
    "rediss",
    "redis-cluster",
    "rediss-cluster",
    "redis-sentinel",
    "rediss-sentinel",
    "redis+unix",
];
/// The parameters of a Redis URL.
const NODE: &str = "node";
const SERVICE: &str = "sentinelServiceName";
const SENTINEL_USER: &str = "sentinelUsername";
const SENTINEL_PASSWORD: &str = "sentinelPassword";

/// Parses an `http://` or `https://` URL.
///
/// # Errors
/// The part that is wrong.
pub(super) fn http_url(text: &str) -> Result<Url, String> {
    let (_, url) = parse(text, &["http", "https"], "http://host:port")?;
    Ok(url)
}

/// Checks a Redis URL, and returns it as it is spelled, without the blanks around it.
///
/// # Errors
/// The part that is wrong.
pub(super) fn redis_url(text: &str) -> Result<String, String> {
    let text = text.trim();
    let (scheme, url) = parse(text, REDIS, "redis://:password@host:6379/0")?;
    for (what, part) in
        [("user name", url.username()), ("password", url.password().unwrap_or_default())]
    {
        if urlencoding::decode(part).is_err() {
            return Err(format!("the {what} is percent-encoded, but not of UTF-8"));
        }
    }
    if scheme == "redis+unix" {
        let path = url.path();
        let named = !path.trim_matches('/').is_empty();
        return if named {
            usable(text)
        } else {
            Err("the path of the socket is missing".to_owned())
        };
    }
    let clustered = scheme.ends_with("-cluster");
    let database = url.path().trim_start_matches('/');
    if !clustered && !database.is_empty() && database.parse::<u8>().is_err() {
        return Err("the database after the host is no number from 0 to 255".to_owned());
    }
    if clustered && url.port().is_none() {
        return Err("the port is missing".to_owned());
    }
    for (name, value) in url.query_pairs() {
        match &*name {
            NODE => node(&value)?,
            SERVICE | SENTINEL_USER | SENTINEL_PASSWORD => {}
            _ => {
                let known = [NODE, SERVICE, SENTINEL_USER, SENTINEL_PASSWORD].join(", ");
                return Err(format!("after the ? is a parameter that is none of {known}"));
            }
        }
    }
    let service = url.query_pairs().any(|(name, value)| name == SERVICE && !value.is_empty());
    if scheme.ends_with("-sentinel") && !service {
        return Err(format!("the parameter {SERVICE} is missing"));
    }
    usable(text)
}

/// Checks that the client library accepts the URL.
fn usable(text: &str) -> Result<String, String> {
    match fred::prelude::Config::from_url(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("the Redis client cannot use this URL".to_owned()),
    }
}

fn node(value: &str) -> Result<(), String> {
    let port = value
        .rsplit_once(':')
        .and_then(|(host, port)| (!host.is_empty()).then_some(port.parse::<u16>().ok()).flatten());
    port.map(drop).ok_or_else(|| format!("a parameter {NODE} is not host:port"))
}

fn parse<'a>(text: &'a str, schemes: &[&str], example: &str) -> Result<(&'a str, Url), String> {
    let text = text.trim();
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!("the scheme is missing; expected a URL like {example}"));
    };
    if !schemes.contains(&scheme) {
        let known: Vec<String> = schemes.iter().map(|scheme| format!("{scheme}://")).collect();
        return Err(format!("the scheme is none of {}", known.join(", ")));
    }
    // In a password these characters would end the authority.
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let sign = rest[authority.len()..].chars().next();
    let cut = match sign {
        Some('#') => true,
        Some(_) => !authority.contains('@') && before_query(&rest[authority.len()..]).contains('@'),
        None => false,
    };
    if let Some(sign) = sign.filter(|_| cut) {
        return Err(format!(
            "a `{sign}` in the user name or password has to be percent-encoded, as %{:02X}",
            u32::from(sign)
        ));
    }
    let url = Url::parse(text).map_err(|error| part(error, authority).to_owned())?;
    if !url.has_host() && scheme != "redis+unix" {
        return Err("the host is missing".to_owned());
    }
    if url.port() == Some(0) {
        return Err("the port is no number from 1 to 65535".to_owned());
    }
    Ok((scheme, url))
}

/// Returns the part in which an @ belongs to a password. The value of a parameter may hold one, too.
fn before_query(rest: &str) -> &str {
    match rest.split_once('?') {
        Some((before, query)) if query.contains('=') => before,
        _ => rest,
    }
}

fn part(error: url::ParseError, authority: &str) -> &'static str {
    match error {
        url::ParseError::InvalidPort => "the port is no number from 1 to 65535",
        url::ParseError::EmptyHost => "the host is missing",
        url::ParseError::InvalidIpv4Address | url::ParseError::InvalidIpv6Address => {
            "the host is no IP address"
        }
        _ if authority.is_empty() => "the host is missing",
        _ => "the host is no name of one",
    }
}

/// Returns the passwords in a URL, both encoded and decoded.
pub(super) fn passwords(url: &str) -> Vec<String> {
    let Ok(url) = Url::parse(url) else { return Vec::new() };
    let encoded = url.password().unwrap_or_default().to_owned();
    let decoded = urlencoding::decode(&encoded).unwrap_or_default().into_owned();
    let of_sentinels = url.query_pairs().filter(|(name, _)| name == SENTINEL_PASSWORD);
    let of_sentinels = of_sentinels.map(|(_, value)| value.into_owned());
    let mut all: Vec<String> = [encoded, decoded].into_iter().chain(of_sentinels).collect();
    all.retain(|password| !password.is_empty());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_redis_url_names_the_part_and_never_the_secret() {
        for (url, part) in [
            ("redis://:57#Secret@host", "%23"),
            ("redis://ann:57#Secret@host:6379/1", "%23"),
            ("redis://:57/Secret@host", "%2F"),
            ("redis://:57?Secret@host", "%3F"),
            ("redis://:Secret@host:port", "the port"),
            ("redis://:Secret@host:70000", "the port"),
            ("redis://:Secret@host:0", "the port"),
            ("redis://:Secret@", "the host"),
            ("redis://:Secret@[::1", "the host"),
            ("redis://:Secret@ho st", "the host"),
            ("redis://:Secret@host/Secret", "the database"),
            ("redis://:Secret@host/256", "the database"),
            ("redis://:Secret@host?Secret=1", "parameter"),
            ("redis://:%ffSecret@host", "UTF-8"),
            ("redis-cluster://:Secret@host", "the port"),
            ("redis-cluster://:Secret@host:1?node=Secret", "node"),
            ("redis-sentinel://:Secret@host:1", "sentinelServiceName"),
            ("redis+unix://:Secret@host", "the path"),
            ("http://:Secret@host", "the scheme"),
            (":Secret@host", "the scheme"),
        ] {
            let error = redis_url(url).expect_err(url);
            assert!(error.contains(part), "{url}: {error}");
            assert!(!error.contains("Secret") && !error.contains("57"), "{url}: {error}");
        }
    }

    #[test]
    fn redis_urls_of_every_kind_are_taken() {
        for url in [
            "redis://host",
            " redis://host:6379/15 ",
            "rediss://ann:pass@host:6380",
            "redis://:a%20b%23%40%25+c@host",
            "redis://:50%off@host",
            "redis-cluster://host:30001?node=b:30002&node=c:30003",
            "redis-sentinel://host:26379?sentinelServiceName=m&sentinelPassword=a@b&node=b:1",
            "redis+unix:///run/redis.sock",
        ] {
            assert_eq!(redis_url(url).as_deref(), Ok(url.trim()), "{url}");
        }
    }

    #[test]
    fn an_error_of_a_web_url_names_the_part_and_never_the_secret() {
        for (url, part) in [
            ("http://ann:57#Secret@host", "%23"),
            ("http://ann:57/Secret@host", "%2F"),
            ("http://ann:Secret@host:x", "the port"),
            ("http://ann:Secret@", "the host"),
            ("ftp://ann:Secret@host", "the scheme"),
            ("Secret", "the scheme"),
        ] {
            let error = http_url(url).expect_err(url);
            assert!(error.contains(part), "{url}: {error}");
            assert!(!error.contains("Secret") && !error.contains("57"), "{url}: {error}");
        }
        assert!(http_url(" https://ann:pass@host/path?key=a@b ").is_ok());
    }

    #[test]
    fn passwords_are_found_encoded_and_decoded() {
        let url = "redis-sentinel://:a%20b@host:1?sentinelServiceName=m&sentinelPassword=c%40d";
        assert_eq!(passwords(url), ["a%20b", "a b", "c@d"]);
        assert!(passwords("redis://host").is_empty());
    }
}
