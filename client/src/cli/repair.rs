//! `repair` and `profile`: what the cluster does by itself, looked at and steered.

use pacsvault_core::{
    health::report::Health,
    layout::{Layout, Profile as Kept},
};
use serde_json::{Value, json};

use super::{
    Context,
    args::{Profile, Repair},
    failure::Failure,
    health,
    output::{table, time_text},
};

/// Looks, or tries again.
pub async fn run(context: &Context, command: Repair) -> Result<(), Failure> {
    let client = context.connect()?;
    match command {
        Repair::Status => {
            let health = client.health().await?;
            let layout = client.layout().await.ok();
            context.out.either(&health::value(&health, layout.as_deref()), || words(&health));
            Ok(())
        }
        Repair::Retry => {
            client.retry_aside().await?;
            context.out.either(&json!({"retried": true}), || {
                "what was set aside is tried again; see `pacsvault repair status`".to_owned()
            });
            Ok(())
        }
    }
}

fn words(health: &Health) -> String {
    let mut lines = health::protection_words(health);
    lines.extend(health::work_words(health));
    if health.aside.is_empty() {
        return lines.join("\n");
    }
    let rows: Vec<Vec<String>> = health
        .aside
        .iter()
        .map(|aside| {
            vec![aside.instance.to_string(), aside.stripe.to_string(), time_text(aside.since.0), aside.reason.clone()]
        })
        .collect();
    lines.push(String::new());
    lines.push(table(&["INSTANCE", "STRIPE", "SET ASIDE", "REASON"], &rows));
    let shown = health.aside.len() as u64;
    if health.aside_total > shown {
        lines.push(format!("and {} more", health.aside_total - shown));
    }
    lines.push("tried again when the cluster changes; `pacsvault repair retry` does it now".to_owned());
    lines.join("\n")
}

/// Lists, or gives a study another one.
pub async fn profile(context: &Context, command: Profile) -> Result<(), Failure> {
    let client = context.connect()?;
    match command {
        Profile::List => {
            let layout = client.layout().await?;
            if context.out.json {
                layout.profiles.values().for_each(|it| context.out.value(&profile_value(it, &layout)));
            } else {
                context.out.say(profiles_table(&layout));
            }
            Ok(())
        }
        Profile::SetStudy { study, profile, none: _ } => {
            let layout = client.layout().await?;
            if let Some(unknown) = profile.as_ref().filter(|name| !layout.profiles.contains_key(name)) {
                let names: Vec<&str> = layout.profiles.keys().map(|name| name.as_str()).collect();
                let text = format!("{unknown} is not a profile of this cluster");
                return Err(Failure::usage(text).hint(format!("profiles: {}", names.join(", "))));
            }
            client.set_study_profile(study.clone(), profile.clone()).await?;
            let value = json!({"study": study.as_str(), "profile": profile.as_ref().map(|name| name.as_str())});
            context.out.either(&value, || match profile {
                Some(name) => format!("study {study} is to be kept as {name}; it is re-encoded in the background"),
                None => format!("study {study} stays as it is"),
            });
            Ok(())
        }
    }
}

/// One profile as JSON.
pub fn profile_value(profile: &Kept, layout: &Layout) -> Value {
    json!({
        "name": profile.name.as_str(), "version": profile.version, "code": profile.code.to_string(),
        "contract": profile.contract.to_string(), "floor": profile.floor.to_string(),
        "default": profile.name == layout.default_profile,
    })
}

fn profiles_table(layout: &Layout) -> String {
    let row = |it: &Kept| {
        let default = if it.name == layout.default_profile { "yes" } else { "" };
        let (name, version, code) = (it.name.to_string(), it.version.to_string(), it.code.to_string());
        vec![name, version, code, it.contract.to_string(), it.floor.to_string(), default.to_owned()]
    };
    let rows: Vec<Vec<String>> = layout.profiles.values().map(row).collect();
    table(&["PROFILE", "VERSION", "CODE", "SURVIVES", "AT LEAST", "DEFAULT"], &rows)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{find::tests::layout, health::tests::health},
        *,
    };

    #[test]
    fn each_stripe_set_aside_is_listed_with_its_reason() {
        let text = words(&Health { aside_total: 5, ..health() });
        assert!(text.contains("1 of 2 shards") && text.contains("and 4 more"), "{text}");
        assert!(!words(&Health::default()).contains("INSTANCE"));
    }

    #[test]
    fn profiles_are_listed_with_what_they_promise() {
        let layout = layout();
        let text = profiles_table(&layout);
        assert!(text.contains("standard") && text.contains("2+1") && text.contains("any one node"), "{text}");
        assert_eq!(profile_value(&layout.profiles[&layout.default_profile], &layout)["default"], true);
    }
}
