//! Who may answer, and how.

use anyhow::Result;
use guard_tests::scene::{CODER, Scene, end, expect_problem, expect_status};
use guard_tests::{Case, case, check};
use serde_json::json;
use xtask::stage::Request;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "answers::owner_cannot",
            "the owner of the label can neither approve nor deny it, and is told why",
            owner_cannot,
        ),
        case(
            "answers::administrator_cannot",
            "being administrator gives no right to answer, and does not lift ownership",
            administrator_cannot,
        ),
        case(
            "answers::other_roles_cannot",
            "operators and auditors see requests and cannot answer them; strangers see nothing",
            other_roles,
        ),
        case(
            "answers::denying_needs_a_reason",
            "a denial without reason is refused and the request stays pending",
            deny_needs_reason,
        ),
        case(
            "answers::bound_to_what_was_shown",
            "an answer with another digest is refused",
            other_digest,
        ),
        case(
            "answers::once",
            "a second answer is refused and says who answered",
            once,
        ),
        case(
            "answers::list_and_states",
            "GET /requests gives items with id and state, filtered by state",
            list_shape,
        ),
        case(
            "answers::groups",
            "a request for a group cannot be answered by an approver outside it",
            groups,
        ),
    ]
}

fn hold(scene: &Scene) -> Result<(xtask::vm::Running, Request)> {
    let running = scene.start_labelled(CODER, &["/bin/echo", "hello"])?;
    let request = scene.held(CODER, "echo hello")?;
    Ok((running, request))
}

fn owner_cannot() -> Result<()> {
    let scene = Scene::new()?;
    let (running, request) = hold(&scene)?;
    check!(request.owner.as_deref() == Some("owner"), "{request:?}");
    let seen = scene.request_as(&scene.owner, &request.id)?;
    check!(!seen.may_answer, "the owner is shown a button");
    check!(
        seen.why_not.as_deref().is_some_and(|why| why.contains("own")),
        "{:?}",
        seen.why_not
    );
    for verdict in ["approve", "deny"] {
        expect_problem(&scene.answer(&scene.owner, &request, verdict, "mine")?, 403, &["own"])?;
    }
    check!(
        scene.request(&request.id)?.pending(),
        "the refused answer ended the request"
    );
    let other = scene.request_as(&scene.approver, &request.id)?;
    check!(other.may_answer && other.why_not.is_none(), "{other:?}");
    scene.approve(&request)?;
    expect_status(&end(running)?, 0)
}

fn administrator_cannot() -> Result<()> {
    let scene = Scene::new()?;
    let both = scene.person("both", &["administrator", "approver"], &[])?;
    let plain = scene.person("plain", &["administrator"], &[])?;
    scene.set_owner(CODER, &both)?;
    let (running, request) = hold(&scene)?;
    expect_problem(&scene.answer(&plain, &request, "approve", "")?, 403, &["approver"])?;
    expect_problem(&scene.answer(&both, &request, "approve", "")?, 403, &["own"])?;
    expect_problem(&scene.answer(scene.admin(), &request, "approve", "")?, 403, &[])?;
    check!(
        scene.request(&request.id)?.pending(),
        "the refused answer ended the request"
    );
    // The former owner owns nothing now.
    scene.answer(&scene.owner, &request, "approve", "")?.success()?;
    expect_status(&end(running)?, 0)
}

fn other_roles() -> Result<()> {
    let scene = Scene::new()?;
    let (running, request) = hold(&scene)?;
    for role in ["operator", "auditor"] {
        let person = scene.person(role, &[role], &[])?;
        let seen = scene.request_as(&person, &request.id)?;
        check!(!seen.may_answer && seen.why_not.is_some(), "{role}: {seen:?}");
        expect_problem(&scene.answer(&person, &request, "approve", "")?, 403, &[])?;
        expect_problem(&scene.answer(&person, &request, "deny", "no")?, 403, &[])?;
    }
    let path = format!("/requests/{}", request.id);
    for (method, path) in [
        ("GET", "/requests"),
        ("GET", &path),
        ("GET", "/evidence"),
        ("GET", "/users"),
        ("GET", "/trust"),
    ] {
        expect_problem(&scene.call(None, method, path, None)?, 401, &[])?;
    }
    let body = json!({"reason": "", "digest": request.digest});
    expect_problem(
        &scene.call(None, "POST", &format!("{path}/approve"), Some(&body))?,
        401,
        &[],
    )?;
    scene.approve(&request)?;
    expect_status(&end(running)?, 0)
}

fn deny_needs_reason() -> Result<()> {
    let scene = Scene::new()?;
    let (running, request) = hold(&scene)?;
    for empty in ["", "  \t "] {
        expect_problem(
            &scene.answer(&scene.approver, &request, "deny", empty)?,
            400,
            &["reason"],
        )?;
    }
    let long = "x".repeat(guard_proto::limits::REASON_BYTES + 1);
    expect_problem(
        &scene.answer(&scene.approver, &request, "deny", &long)?,
        400,
        &["reason"],
    )?;
    let output = scene.guard(&scene.approver, &["requests", "deny", &request.id])?;
    expect_status(&output, 2)?;
    guard_tests::scene::expect_error_says(&output, &["reason"])?;
    check!(
        scene.request(&request.id)?.pending(),
        "the refused answer ended the request"
    );
    scene.deny(&request, "a good one")?;
    expect_status(&end(running)?, 126)
}

fn other_digest() -> Result<()> {
    let scene = Scene::new()?;
    let (running, request) = hold(&scene)?;
    let path = format!("/requests/{}/approve", request.id);
    let other = json!({"reason": "", "digest": "0".repeat(64)});
    expect_problem(
        &scene.call(Some(&scene.approver), "POST", &path, Some(&other))?,
        409,
        &[],
    )?;
    let none = json!({"reason": ""});
    let answer = scene.call(Some(&scene.approver), "POST", &path, Some(&none))?;
    check!(matches!(answer.status, 400 | 422), "{answer}");
    check!(
        scene.request(&request.id)?.pending(),
        "the refused answer ended the request"
    );
    scene.approve(&request)?;
    expect_status(&end(running)?, 0)
}

fn once() -> Result<()> {
    let scene = Scene::new()?;
    let second = scene.person("second", &["approver"], &[])?;
    let (running, request) = hold(&scene)?;
    scene.approve(&request)?;
    expect_status(&end(running)?, 0)?;
    for verdict in ["approve", "deny"] {
        expect_problem(&scene.answer(&second, &request, verdict, "late")?, 409, &["approver"])?;
    }
    let request = scene.request(&request.id)?;
    check!(
        request.state == "approved" && request.decisions.len() == 1,
        "{request:?}"
    );
    Ok(())
}

fn list_shape() -> Result<()> {
    let scene = Scene::new()?;
    let (running, first) = hold(&scene)?;
    scene.approve(&first)?;
    end(running)?;
    let (_running, second) = hold(&scene)?;
    let page = |query: &str| -> Result<Vec<guard_proto::rest::Request>> {
        let answer = scene
            .call(Some(&scene.approver), "GET", &format!("/requests{query}"), None)?
            .success()?;
        let page: guard_proto::rest::Page<guard_proto::rest::Request> = serde_json::from_slice(&answer.body)?;
        Ok(page.items)
    };
    let ids = |items: &[guard_proto::rest::Request]| items.iter().map(|item| item.id.clone()).collect::<Vec<_>>();
    check!(ids(&page("?state=pending")?) == [second.id.clone()], "pending");
    check!(ids(&page("?state=approved")?) == [first.id.clone()], "approved");
    check!(page("?state=denied")?.is_empty(), "denied");
    check!(page("?label=nobody")?.is_empty(), "another label");
    check!(page("?label=coder")?.len() == 2, "the label");
    check!(page("?limit=1")?.len() == 1, "limit");
    for bad in ["?state=maybe", "?limit=-1", "?limit=x", "?cursor=%00"] {
        let answer = scene.call(Some(&scene.approver), "GET", &format!("/requests{bad}"), None)?;
        check!(matches!(answer.status, 400 | 422), "{bad}: {answer}");
    }
    Ok(())
}

fn groups() -> Result<()> {
    let scene = Scene::new()?;
    scene.set_policy(guard_tests::policies::ASK_CODE_PUSH.as_bytes())?;
    let outside = scene.person("outside", &["approver"], &["finance"])?;
    let inside = scene.person("inside", &["approver"], &["finance", "code-push"])?;
    let running = scene.start_labelled(guard_tests::policies::POLICED, &["/bin/echo", "push"])?;
    let request = scene.held(guard_tests::policies::POLICED, "echo push")?;
    check!(request.approver_groups == ["code-push"], "{request:?}");
    let seen = scene.request_as(&outside, &request.id)?;
    check!(
        !seen.may_answer && seen.why_not.as_deref().is_some_and(|why| why.contains("code-push")),
        "{seen:?}"
    );
    expect_problem(&scene.answer(&outside, &request, "approve", "")?, 403, &["code-push"])?;
    scene.answer(&inside, &request, "approve", "")?.success()?;
    expect_status(&end(running)?, 0)
}
