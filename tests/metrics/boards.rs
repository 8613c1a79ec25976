//! The dashboard and the alert rules, against what is exported.
