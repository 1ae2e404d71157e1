//! nginx in front of several replicas, with the rules that the containers use too.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;

use crate::process::Program;
use crate::programs;

/// Creates the program nginx, listening on `listen` and passing requests on to `replicas`, round robin. Its
/// configuration and its log go to `folder`.
///
/// # Errors
/// Fails where the configuration cannot be written.
pub fn program(folder: &Path, listen: &str, replicas: &[String]) -> anyhow::Result<Program> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let config = folder.join("nginx.conf");
    let rules = programs::workspace().join("deploy/nginx");
    std::fs::write(&config, configuration(folder, &round_robin(&rules, listen, replicas)))?;
    let (prefix, config) = (folder.display().to_string(), config.display().to_string());
    let arguments = ["-p", &prefix, "-c", &config, "-e", "stderr", "-g", "daemon off;"];
    Ok(Program::new("nginx", "nginx", folder).args(arguments))
}

fn round_robin(rules: &Path, listen: &str, replicas: &[String]) -> String {
    let rules = rules.display();
    let mut servers = String::new();
    for replica in replicas {
        // max_fails=0: else one failed request takes a replica away from everybody for seconds.
        let _ = writeln!(servers, "        server {replica} max_fails=0;");
    }
    format!(
        "    access_log off;\n\
         \x20   include \"{rules}/http.conf\";\n\
         \x20   upstream replicas {{\n{servers}        keepalive 64;\n    }}\n\
         \x20   map \"\" $jarvis {{\n        default replicas;\n    }}\n\
         \x20   server {{\n        listen {listen};\n        include \"{rules}/jarvis.conf\";\n    }}\n"
    )
}

/// Returns a configuration with this content of the block `http`, and with its files in `folder`.
pub fn configuration(folder: &Path, http: &str) -> String {
    let folder = folder.display();
    let mut temporary = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(temporary, "    {kind}_temp_path \"{folder}/{kind}\";");
    }
    // As root its workers would become "nobody", who may not enter the folder.
    let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
    format!(
        "{user}worker_processes auto;\n\
         pid \"{folder}/nginx.pid\";\n\
         error_log stderr warn;\n\
         events {{\n    worker_connections 16384;\n}}\n\
         http {{\n{temporary}{http}}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_replica_is_in_the_configuration_and_the_rules_are_the_containers() {
        let replicas = ["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()];
        let http = round_robin(Path::new("/r"), "127.0.0.1:3", &replicas);
        let text = configuration(Path::new("/f"), &http);
        assert!(text.contains("        server 127.0.0.1:1 max_fails=0;"), "{text}");
        assert!(text.contains("        server 127.0.0.1:2 max_fails=0;"), "{text}");
        assert!(text.contains("        listen 127.0.0.1:3;\n        include \"/r/jarvis.conf\";"));
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }
}
