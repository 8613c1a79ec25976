//! The page by keyboard, for a screen reader, on a phone, and in the dark.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::stage::Stage;
use crate::support::soon;

const TAB: char = '\u{e004}';
const ENTER: &str = "\u{e007}";
const ESCAPE: &str = "\u{e00c}";

impl Stage {
    /// Presses Tab until an element with that text has the focus.
    async fn tab_to(&self, text: &str) {
        let focused = "return document.activeElement.textContent.trim()";
        for _ in 0..60 {
            self.browser.press(&TAB.to_string()).await;
            if self.browser.run(focused, json!([])).await == text {
                let outline = "return getComputedStyle(document.activeElement).outlineStyle";
                assert_eq!(
                    self.browser.run(outline, json!([])).await,
                    "solid",
                    "{text}"
                );
                return;
            }
        }
        panic!("no number of tabs leads to {text:?}");
    }

    /// Goes to what has this text by the key TAB alone, and presses ENTER there.
    async fn tab_to_and_press(&self, text: &str) {
        self.tab_to(text).await;
        self.browser.press(ENTER).await;
    }

    async fn text_becomes(&self, id: &str, part: &str) {
        let script = "return document.getElementById(arguments[0]).textContent";
        let has_part = |text: &Value| text.as_str().unwrap().contains(part);
        let what = format!("#{id} says {part:?}");
        self.browser
            .eventually(&what, script, json!([id]), has_part)
            .await;
    }
}

pub async fn all_can_be_done_with_the_keyboard() {
    let stage = Stage::set().await;
    let holding = stage.two.post("/orders/7");
    stage.open(&stage.two).await;
    stage
        .row_becomes("orders:7", "is held", |row| row.now.starts_with("held"))
        .await;
    // On the other node, the lock is found by the list of all.
    stage.open(&stage.one).await;
    stage.tab_to_and_press("List locks").await;
    stage.text_becomes("all", "node-2").await;
    stage.tab_to_and_press("orders:7").await;
    stage.text_becomes("facts", "node-2").await;
    let focused = "return document.activeElement.id";
    assert_eq!(stage.browser.run(focused, json!([])).await, "detail-title");

    // Escape leads back to where one was.
    stage.browser.press(ESCAPE).await;
    let focused = "return document.activeElement.textContent";
    assert_eq!(stage.browser.run(focused, json!([])).await, "orders:7");
    stage.browser.press(ENTER).await;
    stage.text_becomes("facts", "node-2").await;

    // Who changes their mind takes nothing.
    stage.tab_to_and_press("Force release…").await;
    stage.text_becomes("confirm-holder", "node-2").await;
    let focused = "return document.activeElement.textContent";
    assert_eq!(stage.browser.run(focused, json!([])).await, "Cancel");
    stage.browser.press(ESCAPE).await;
    stage.tab_to_and_press("Ask again").await;
    stage.text_becomes("facts", "node-2").await;
    assert!(!holding.is_finished());

    stage.tab_to_and_press("Force release…").await;
    stage.tab_to_and_press("Release the lock").await;
    stage.text_becomes("result", "Released.").await;
    assert_eq!(soon("the holder is stopped", holding).await.unwrap(), "503");
    stage.text_becomes("facts", "free").await;
    stage.end().await;
}

/// The rule that text and its background differ by a factor of 4.5 in luminance is WCAG's (AA).
const CONTRASTS: &str = "
    const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
    const back = (element) => {
        for (; element; element = element.parentElement) {
            const color = numbers(getComputedStyle(element).backgroundColor);
            if (color.length === 3 || color[3] === 1) return color;
        }
        return [255, 255, 255];
    };
    const poor = [];
    for (const element of document.querySelectorAll('body *')) {
        const has = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!has || element.closest('svg, script, style, noscript') || !element.checkVisibility()) continue;
        const [one, other] = [numbers(getComputedStyle(element).color), back(element)].map(luminance);
        const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        if (contrast < 4.5) poor.push(`${element.textContent.trim().slice(0, 40)}: ${contrast.toFixed(2)}`);
    }
    return poor";

pub async fn all_controls_have_names_and_all_text_has_contrast() {
    let stage = Stage::set().await;
    let holding = stage.one.post("/orders/7");
    let waiting = stage.one.post("/orders/7");
    stage.open(&stage.one).await;
    stage
        .row_becomes("orders:7", "is waited for", |row| row.waiting == "1")
        .await;
    stage
        .browser
        .run("document.querySelector('#locks .link').click()", json!([]))
        .await;
    stage.text_becomes("facts", "node-1").await;
    for width in [1440, 390] {
        stage.browser.is_wide(width, 900).await;
        let tree = stage
            .browser
            .chromium("Accessibility.getFullAXTree", json!({}))
            .await;
        let nodes = tree["nodes"].as_array().unwrap();
        let mut roles = HashSet::new();
        for node in nodes.iter().filter(|node| node["ignored"] == false) {
            let role = node["role"]["value"].as_str().unwrap_or_default();
            let name = node["name"]["value"].as_str().unwrap_or_default();
            roles.insert(role.to_owned());
            let needs_name = [
                "button",
                "link",
                "checkbox",
                "combobox",
                "searchbox",
                "textbox",
                "image",
                "img",
                "table",
                "region",
                "dialog",
                "complementary",
                "heading",
            ];
            if needs_name.contains(&role) {
                assert!(
                    !name.is_empty(),
                    "a {role} without a name, {width} px wide: {node:#}"
                );
            }
        }
        // Though they look like cards on a phone, they are tables.
        for role in [
            "table",
            "row",
            "columnheader",
            "rowheader",
            "cell",
            "main",
            "status",
        ] {
            assert!(
                roles.contains(role),
                "no {role}, {width} px wide: {roles:?}"
            );
        }
        for scheme in ["light", "dark"] {
            stage.browser.prefers(scheme).await;
            let poor = stage.browser.run(CONTRASTS, json!([])).await;
            assert_eq!(poor, json!([]), "{scheme}, {width} px wide");
        }
    }
    let back = "return getComputedStyle(document.body).backgroundColor";
    let dark = stage.browser.run(back, json!([])).await;
    stage.browser.prefers("light").await;
    assert_ne!(stage.browser.run(back, json!([])).await, dark);
    stage.one.finish_one().await;
    stage.one.finish_one().await;
    soon("the first", holding).await.unwrap();
    soon("the second", waiting).await.unwrap();
    stage.end().await;
}

pub async fn a_phone_shows_all_without_scrolling_sideways() {
    let stage = Stage::set().await;
    stage.browser.is_wide(390, 844).await;
    let holding = stage.one.post(&format!("/orders/{}", "long".repeat(80)));
    stage.open(&stage.one).await;
    let rows = "return document.querySelectorAll('#locks tbody tr').length";
    stage
        .browser
        .eventually("it is shown", rows, json!([]), |rows| *rows == 1)
        .await;
    stage
        .browser
        .run("document.querySelector('#locks .link').click()", json!([]))
        .await;
    stage.text_becomes("facts", "node-1").await;
    stage
        .browser
        .run("document.getElementById('list-locks').click()", json!([]))
        .await;
    stage.text_becomes("all", "node-1").await;
    let widths = "return [document.documentElement.scrollWidth, innerWidth]";
    assert_eq!(
        stage.browser.run(widths, json!([])).await,
        json!([390, 390])
    );
    stage.one.finish_one().await;
    soon("the holder", holding).await.unwrap();
    stage.end().await;
}
