//! What strangers can do: choose keys, and have pages of their own.

use serde_json::{Value, json};

use crate::stage::Stage;
use crate::support::soon;

pub async fn another_site_cannot_take_a_lock() {
    let stage = Stage::set().await;
    let holding = stage.one.post("/orders/7");
    stage.open(&stage.one).await;
    stage
        .row_becomes("orders:7", "is held", |row| row.now.starts_with("held"))
        .await;
    // The worst case: the stranger knows the id.
    let id = "return fetch('?view=snapshot').then((r) => r.json()).then((all) => all.locks[0].id)";
    let id = stage.browser.run_async(id, json!([])).await;
    let target = format!(
        "{}?do=force-release&id={}",
        stage.one.page(),
        id.as_str().unwrap()
    );
    assert!(stage.browser.complaints().await.is_empty());

    // Another port of the same machine is another site to a server, and sends its cookies.
    stage
        .browser
        .open(&format!("{}/stranger", stage.two.url()))
        .await;
    let with_header = "
        const headers = { 'x-tower-distributed-lock': '1' };
        await fetch(given[0], { method: 'POST', headers, credentials: 'include' });
        return 'done'";
    let told = stage.browser.run_async(with_header, json!([target])).await;
    assert!(told.as_str().unwrap().contains("TypeError"), "{told}");
    let without = "
        await fetch(given[0], { method: 'POST', mode: 'no-cors', credentials: 'include' });
        return 'sent'";
    // It is sent, and refused; the answer is kept from the stranger as well.
    let told = stage.browser.run_async(without, json!([target])).await;
    assert!(told.as_str().unwrap().contains("TypeError"), "{told}");
    let form = "
        const form = document.createElement('form');
        Object.assign(form, { method: 'POST', action: arguments[0] });
        document.body.append(form);
        form.submit()";
    stage.browser.run(form, json!([target])).await;
    let answer = "return document.body.textContent";
    let is_refused = |text: &Value| text.as_str().unwrap().contains("x-tower-distributed-lock");
    stage
        .browser
        .eventually("the form is refused", answer, json!([]), is_refused)
        .await;
    // Nor can it show the page in a frame, to have its buttons pressed.
    stage
        .browser
        .open(&format!("{}/stranger", stage.two.url()))
        .await;
    let frame = "
        const frame = document.createElement('iframe');
        frame.src = given[0];
        const loaded = new Promise((done) => frame.addEventListener('load', done));
        document.body.append(frame);
        await loaded;
        return frame.contentDocument === null ? 'opaque' : frame.contentDocument.title";
    stage
        .browser
        .run_async(frame, json!([stage.one.page()]))
        .await;
    let complaints = stage.browser.complaints().await;
    let is_framing = |one: &Value| one["message"].as_str().unwrap().contains("frame-ancestors");
    assert!(complaints.iter().any(is_framing), "{complaints:#?}");

    assert!(!holding.is_finished());
    stage.open(&stage.one).await;
    stage
        .row_becomes("orders:7", "is still held", |row| {
            row.now.starts_with("held") && row.lost == "0"
        })
        .await;
    stage.one.finish_one().await;
    assert_eq!(soon("the holder", holding).await.unwrap(), "200");
}

pub async fn keys_of_strangers_are_text() {
    let stage = Stage::set().await;
    // `<img src=x onerror=…>`, in quotes, behind the end of a script.
    let path = "/orders/%3C%2Fscript%3E%3Cimg%20src=x%20onerror=%22document.title='broken'%22%3E";
    let holding = stage.one.post(path);
    stage.open(&stage.one).await;
    let key = "orders:</script><img src=x onerror=\"document.title='broken'\">";
    stage
        .row_becomes(key, "is text", |row| row.now.starts_with("held"))
        .await;
    stage
        .browser
        .run("document.querySelector('#locks .link').click()", json!([]))
        .await;
    let facts = "return document.getElementById('facts').textContent";
    let is_there = |facts: &Value| facts.as_str().unwrap().contains("node-1");
    stage
        .browser
        .eventually("it is looked up", facts, json!([]), is_there)
        .await;
    let images = "return [document.images.length, document.title.includes('broken')]";
    assert_eq!(
        stage.browser.run(images, json!([])).await,
        json!([0, false])
    );
    // All that was loaded is of the node.
    let loaded = "return performance.getEntriesByType('resource').map((one) => one.name)";
    for url in stage
        .browser
        .run(loaded, json!([]))
        .await
        .as_array()
        .unwrap()
    {
        assert!(
            url.as_str().unwrap().starts_with(&stage.one.page()),
            "{url}"
        );
    }
    stage.one.finish_one().await;
    soon("the holder", holding).await.unwrap();
    stage.end().await;
}
