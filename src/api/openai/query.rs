//! Checks the query of a request. Pure.

use super::params::UNSUPPORTED_VALUE;
use crate::http::extract::fields::Fields;
use crate::http::extract::object::Object;

/// Checks that the query has no other fields than these.
pub fn check_names(fields: &mut Fields<'_>, names: &[&str], given: &Object) {
    for name in given.names().filter(|name| !names.contains(name)) {
        if name == "include" || name == "include[]" {
            let msg = "is not supported with another value than []";
            fields.refuse("include", UNSUPPORTED_VALUE, msg);
        } else {
            fields.refuse(name, "unknown_parameter", "is not known");
        }
    }
}
