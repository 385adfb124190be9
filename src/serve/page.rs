//! The page, and what it shows of a model's training.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE};
use pulldown_cmark::{Alignment, Event, HeadingLevel, Options, Parser, Tag, TagEnd, html};

use super::Shared;
use super::refusal::Refusal;

/// Everything that the page loads.
const FILES: [(&str, &str, &str); 6] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/app.js", "text/javascript; charset=utf-8", include_str!("page/app.js")),
    ("/csv.js", "text/javascript; charset=utf-8", include_str!("page/csv.js")),
    ("/model.js", "text/javascript; charset=utf-8", include_str!("page/model.js")),
    ("/style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];

pub(super) fn router() -> Router<Arc<Shared>> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, text)| {
        let answer = move || async move { ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache")], text) };
        router.route(path, get(answer))
    })
}

/// The card of a model, as HTML.
pub(super) const CARD: &str = "card.html";

/// What tells of the training of the model `run`, counted from 0.
pub(super) async fn file(
    State(shared): State<Arc<Shared>>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Response, Refusal> {
    let Path((run, file)) = path.map_err(|error| Refusal::bad_request(error.body_text()))?;
    let model = shared.model()?;
    let found = model.files.iter().find(|((at, name), _)| at.to_string() == run && *name == file);
    let nothing = || Refusal::new(StatusCode::NOT_FOUND, "there is no such file of a model");
    let ((_, name), bytes) = found.ok_or_else(nothing)?;
    let kind = match name.rsplit_once('.').map(|(_, end)| end) {
        Some("html") => "text/html; charset=utf-8",
        Some("jsonl") => "application/jsonl; charset=utf-8",
        Some("csv") => "text/csv; charset=utf-8",
        _ => "image/png",
    };
    Ok(([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache")], bytes.clone()).into_response())
}

/// A card as HTML: without its front matter, its pictures, and any HTML of its own.
pub(super) fn card(markdown: &str) -> String {
    let markdown = markdown.replace("\r\n", "\n");
    let body = markdown.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---\n"));
    let body = body.map_or(&*markdown, |(_, body)| body);
    let mut is_comment = false;
    let mut pictures = 0;
    let events = Parser::new_ext(body, Options::ENABLE_TABLES).filter_map(move |event| match event {
        Event::Start(Tag::Image { .. }) => {
            pictures += 1;
            None
        }
        Event::End(TagEnd::Image) => {
            pictures -= 1;
            None
        }
        _ if pictures > 0 => None,
        // A comment is for editors.
        Event::Html(text) | Event::InlineHtml(text) => {
            let shown = uncommented(&text, &mut is_comment);
            (!shown.trim().is_empty()).then(|| Event::Text(shown.into()))
        }
        // The page has a heading of its own above it.
        Event::Start(Tag::Heading { level, id, classes, attrs }) => {
            Some(Event::Start(Tag::Heading { level: lower(level), id, classes, attrs }))
        }
        Event::End(TagEnd::Heading(level)) => Some(Event::End(TagEnd::Heading(lower(level)))),
        Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
            let is_web = ["https://", "http://"].iter().any(|scheme| dest_url.starts_with(scheme));
            let dest_url = if is_web { dest_url } else { "#model".into() };
            Some(Event::Start(Tag::Link { link_type, dest_url, title, id }))
        }
        // Alignments would be styles, which the page's policy forbids.
        Event::Start(Tag::Table(columns)) => {
            Some(Event::Start(Tag::Table(vec![Alignment::None; columns.len()])))
        }
        other => Some(other),
    });
    let mut text = String::new();
    html::push_html(&mut text, events);
    text
}

/// What isn't in a comment, of which an earlier part may have begun one.
fn uncommented(mut html: &str, is_comment: &mut bool) -> String {
    let mut shown = String::new();
    loop {
        let (end, next) = if *is_comment { ("-->", 3) } else { ("<!--", 4) };
        let (part, rest) = html.split_at(html.find(end).unwrap_or(html.len()));
        if !*is_comment {
            shown.push_str(part);
        }
        if rest.is_empty() {
            return shown;
        }
        *is_comment = !*is_comment;
        html = &rest[next..];
    }
}

fn lower(level: HeadingLevel) -> HeadingLevel {
    // There are no more than six.
    HeadingLevel::try_from(level as usize + 1).unwrap_or(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn front_matter_of_windows_is_none_of_the_text() {
        assert_eq!(card("---\r\na: b\r\n---\r\ntext\r\n"), "<p>text</p>\n");
    }

    #[test]
    fn a_card_is_no_more_than_text() {
        let html = card(
            "---\ntags: x\n---\n<!-- ours -->\n\n# A *model*\n\n![loss](loss.png)\n\n<script>alert(1)</script>\n\n\
             a <b onclick=\"x()\">word</b> and [a](javascript:alert(1)) [b](https://example.org)\n\n\
             | a | b |\n|---|--:|\n| 1 | <i> |\n\n<!-- a\nnote\nof mine --> kept\n",
        );
        assert!(html.starts_with("<h2>A <em>model</em></h2>"), "{html}");
        for absent in
            ["<script", "<b ", "<i>", "javascript:", "<img", "style", "ours", "tags", "note", "mine", "--"]
        {
            assert!(!html.contains(absent), "{absent}: {html}");
        }
        for present in ["&lt;script&gt;", "<td>1</td>", "href=\"https://example.org\"", "kept"] {
            assert!(html.contains(present), "{present}: {html}");
        }
    }
}
