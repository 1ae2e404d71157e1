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
    let text = with_lower_scheme(text);
    let (_, url) = parse(&text, &["http", "https"], "http://host:port")?;
    Ok(url)
}

/// Checks a Redis URL, and returns it as it is spelled, without the blanks around it, and with its
/// scheme in lower case.
///
/// # Errors
/// The part that is wrong.
pub(super) fn redis_url(text: &str) -> Result<String, String> {
    let text = with_lower_scheme(text);
    let (scheme, url) = parse(&text, REDIS, "redis://:password@host:6379/0")?;
    for (what, part) in
        [("user name", url.username()), ("password", url.password().unwrap_or_default())]
    {
        if urlencoding::decode(part).is_err() {
            return Err(format!("the {what} is percent-encoded, but not of UTF-8"));
        }
    }
    parameters(scheme, &url)?;
    if scheme == "redis+unix" {
        let path = url.path();
        let named = !path.trim_matches('/').is_empty();
        return if named {
            usable(&text)
        } else {
            Err("the path of the socket is missing".to_owned())
        };
    }
    let clustered = scheme.ends_with("-cluster");
    let database = url.path().trim_start_matches('/');
    if clustered && !matches!(database, "" | "0") {
        return Err("a cluster has one database; leave out what follows the host".to_owned());
    }
    if !database.is_empty() && database.parse::<u8>().is_err() {
        return Err("the database after the host is no number from 0 to 255".to_owned());
    }
    if clustered && url.port().is_none() {
        return Err("the port is missing".to_owned());
    }
    usable(&text)
}

/// Returns the text without the blanks around it, and with its scheme in lower case.
fn with_lower_scheme(text: &str) -> String {
    let text = text.trim();
    match text.split_once("://") {
        Some((scheme, rest)) => format!("{}://{rest}", scheme.to_ascii_lowercase()),
        None => text.to_owned(),
    }
}

/// Checks the parameters of a Redis URL.
fn parameters(scheme: &str, url: &Url) -> Result<(), String> {
    let known: &[&str] = match scheme.rsplit_once('-') {
        Some((_, "cluster")) => &[NODE],
        Some((_, "sentinel")) => &[NODE, SERVICE, SENTINEL_USER, SENTINEL_PASSWORD],
        _ => &[],
    };
    let mut seen = Vec::new();
    for pair in url.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(name) = known.iter().find(|known| **known == name) else {
            let allowed = match known {
                [] => format!("a URL with {scheme}:// has no parameters"),
                known => format!("its parameters are {}", known.join(", ")),
            };
            return Err(format!(
                "after the ? is an unknown parameter: {allowed}; in a password, percent-encode ? \
                 as %3F and & as %26"
            ));
        };
        if value.contains('+') {
            return Err(format!(
                "a `+` in {name} stands for a blank; percent-encode it as %2B, and a blank as %20"
            ));
        }
        let Ok(value) = urlencoding::decode(value) else {
            return Err(format!("the parameter {name} is percent-encoded, but not of UTF-8"));
        };
        if *name == NODE {
            node(&value)?;
        } else if seen.contains(name) {
            return Err(format!("the parameter {name} is given twice"));
        }
        seen.push(name);
    }
    let service = url.query_pairs().any(|(name, value)| name == SERVICE && !value.is_empty());
    if known.contains(&SERVICE) && !service {
        return Err(format!("the parameter {SERVICE} is missing"));
    }
    Ok(())
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
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!("the scheme is missing; expected a URL like {example}"));
    };
    if !schemes.contains(&scheme) {
        let known: Vec<String> = schemes.iter().map(|scheme| format!("{scheme}://")).collect();
        return Err(format!("the scheme must be one of {}", known.join(", ")));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if let Some(sign) = sign_in_password(authority, &rest[authority.len()..]) {
        return Err(format!(
            "a `{sign}` in the user name or password has to be percent-encoded, as %{:02X}",
            u32::from(sign)
        ));
    }
    if rest.contains('#') {
        return Err("a `#` ends a URL; leave out what follows it, or \
            percent-encode a `#` of a password as %23"
            .to_owned());
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

/// Returns the sign that ends the authority of a URL although it belongs to the user name or the
/// password: behind it is the @ that should end those.
fn sign_in_password(authority: &str, rest: &str) -> Option<char> {
    let sign = rest.chars().next().filter(|_| !authority.contains('@'))?;
    let is_cut = match sign {
        // A port and parameters, whose values may hold an @, look like a name and a password.
        '#' => rest.contains('@'),
        _ => before_query(rest).contains('@') || is_userinfo(authority) && rest.contains('@'),
    };
    is_cut.then_some(sign)
}

/// Returns the part in which an @ belongs to a password. The value of a parameter may hold one, too.
fn before_query(rest: &str) -> &str {
    match rest.split_once('?') {
        Some((before, query)) if query.contains('=') => before,
        _ => rest,
    }
}

/// Returns whether the text is a user name and a password, and no host with a port.
fn is_userinfo(authority: &str) -> bool {
    let port = authority.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
    port.is_some_and(|(host, port)| host.is_empty() || port.is_err())
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
            // A sign that cuts a password where a port or a parameter could be, too.
            ("redis://:57?Secret=1@host", "%3F"),
            ("redis://:57/Secret?x=1@host", "%2F"),
            ("redis://ann:x57?Secret=1@host", "%3F"),
            ("redis://ann:57?Secret=1@host", "%3F"),
            ("redis://:57#Secret", "%23"),
            ("redis+unix://:57#Secret@/x", "%23"),
            ("redis-sentinel://host:1?sentinelServiceName=m&sentinelPassword=57#Secret", "%23"),
            ("redis-sentinel://h:1?sentinelServiceName=m&sentinelPassword=57&Secret", "%26"),
            ("redis-sentinel://h:1?sentinelServiceName=m&sentinelPassword=57+Secret", "%2B"),
            ("redis-sentinel://h:1?sentinelServiceName=m&sentinelPassword=%ffSecret", "UTF-8"),
            ("redis-sentinel://h:1?sentinelServiceName=m&sentinelServiceName=Secret", "twice"),
            // A parameter that another scheme has, or none.
            ("redis+unix:///x?y=Secret", "has no parameters"),
            ("redis+unix:///x?node=Secret", "has no parameters"),
            ("redis://host?node=Secret:1", "has no parameters"),
            ("rediss://host?sentinelPassword=Secret", "has no parameters"),
            ("redis-cluster://host:1?sentinelPassword=Secret", "parameters are node"),
            ("rediss-sentinel://h:1?sentinelServiceName=m&Secret=1", "sentinelUsername"),
            ("redis-cluster://host:1/57", "one database"),
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
            "redis-cluster://host:30001/0",
            "redis-sentinel://host:26379?sentinelServiceName=m&sentinelPassword=a@b&node=b:1",
            "redis+unix:///run/redis.sock",
        ] {
            assert_eq!(redis_url(url).as_deref(), Ok(url.trim()), "{url}");
        }
        let spelled = redis_url("REDIS-Cluster://:Pass@Host:1");
        assert_eq!(spelled.as_deref(), Ok("redis-cluster://:Pass@Host:1"));
    }

    #[test]
    fn an_error_of_a_web_url_names_the_part_and_never_the_secret() {
        for (url, part) in [
            ("http://ann:57#Secret@host", "%23"),
            ("http://ann:57/Secret@host", "%2F"),
            ("http://ann:Secret@host:x", "the port"),
            ("http://ann:Secret@", "the host"),
            ("http://ann:x57?Secret=1@host", "%3F"),
            ("http://h#Secret", "leave out what follows"),
            ("http://h/x#Secret", "leave out what follows"),
            ("HTTP://h#Secret", "leave out what follows"),
            ("ftp://ann:Secret@host", "the scheme"),
            ("Secret", "the scheme"),
        ] {
            let error = http_url(url).expect_err(url);
            assert!(error.contains(part), "{url}: {error}");
            assert!(!error.contains("Secret") && !error.contains("57"), "{url}: {error}");
        }
        for url in [
            " https://ann:pass@host/path?key=a@b ",
            "http://host:80?key=a@b",
            "HTTP://host",
            "Https://Host",
        ] {
            assert!(http_url(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn passwords_are_found_encoded_and_decoded() {
        let url = "redis-sentinel://:a%20b@host:1?sentinelServiceName=m&sentinelPassword=c%40d";
        assert_eq!(passwords(url), ["a%20b", "a b", "c@d"]);
        assert!(passwords("redis://host").is_empty());
    }
}
