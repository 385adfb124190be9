//! `bert-xla serve`: what it answers, and to whom.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use bert_xla::data::{Purpose, Table, TableOptions};
use serde_json::{Value as Json, json};

use crate::common::cli::{asset, command, demo, fails, text, train};
use crate::common::empty_folder;
use crate::common::ensembles::other_run;
use crate::common::server::{Server, ask};

const LABELS: [&str; 3] = ["-1", "0", "1"];

/// A run of a model that doesn't read padding.
pub fn masked() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| {
        let run = empty_folder("serve_masked").join("run");
        let output = train(&run, &["--epochs", "1", "--mask", "--learning-rate", "1e-3"]).output().unwrap();
        assert!(output.status.success(), "{}", text(output.stderr));
        run
    })
}

fn sample() -> Vec<String> {
    let table = Table::read(&asset("sample.csv"), &TableOptions::default(), Purpose::Predict).unwrap();
    table.texts.iter().map(str::to_owned).collect()
}

/// What `predict` writes for the sample.
fn predicted(runs: &[&Path], folder: &Path, arguments: &[&str]) -> String {
    let output = folder.join("predicted.csv");
    let mut predict = command(&["predict", "--backend", "cpu", "--probabilities", "--data"]);
    predict.arg(asset("sample.csv")).arg("--output").arg(&output).args(arguments);
    runs.iter().for_each(|run| _ = predict.arg("--run").arg(run));
    let done = predict.output().unwrap();
    assert!(done.status.success(), "{}", text(done.stderr));
    fs::read_to_string(output).unwrap()
}

/// The probabilities in such a file.
fn probabilities(csv: &str) -> Vec<Vec<f32>> {
    let row = |line: &str| line.rsplitn(4, ',').take(3).map(|p| p.parse().unwrap()).collect::<Vec<f32>>();
    csv.lines().skip(1).map(|line| row(line).into_iter().rev().collect()).collect()
}

#[track_caller]
fn assert_near(found: &[f32], expected: &[f32]) {
    let far = found.iter().zip(expected).any(|(a, b)| (a - b).abs() > 1e-6);
    assert!(!far && found.len() == expected.len(), "{found:?}, not {expected:?}");
}

#[test]
fn answers_are_those_of_predict_whatever_comes_with_them() {
    let folder = empty_folder("serve_answers");
    let expected = probabilities(&predicted(&[masked()], &folder, &[]));
    let server = Server::start(masked(), &folder.join("log"), &[]);
    let info = server.get("/info").json();
    assert_eq!(info["labels"], json!(LABELS));
    assert_eq!(info["batch_sizes"], json!([1, 2, 4, 8, 16, 32]));
    assert_eq!(info["models"][0]["lengths"], json!([8, 16, 24]));
    let texts = sample();
    // Several at a time from each of several clients, in an order of its own.
    thread::scope(|scope| {
        for client in 0..8 {
            let (server, texts, expected) = (&server, &texts, &expected);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(client);
                for _ in 0..60 {
                    let rows =
                        (0..random.usize(1..12)).map(|_| random.usize(..texts.len())).collect::<Vec<_>>();
                    let asked = rows.iter().map(|row| &*texts[*row]).collect::<Vec<_>>();
                    let answers = server.probabilities(&asked, &LABELS);
                    for (row, answer) in rows.iter().zip(&answers) {
                        assert_near(answer, &expected[*row]);
                    }
                }
            });
        }
    });
    // What was logged tells nothing of texts.
    let log = server.log();
    assert!(texts.iter().filter(|text| text.len() > 12).all(|text| !log.contains(&**text)), "{log}");
    assert!(log.contains("route=\"/predict\" status=200"), "{log}");
}

#[test]
fn a_table_gives_the_bytes_that_predict_writes() {
    let folder = empty_folder("serve_table");
    let run = demo().join("run");
    let expected = predicted(&[&run], &folder, &["--batch-size", "16"]);
    // The same steps: the same bits.
    let mut server = Server::start(&run, &folder.join("log"), &["--batch-sizes", "16"]);
    let table = fs::read(asset("sample.csv")).unwrap();
    let answer = server.post("/predict.csv?probabilities=true", &table);
    assert_eq!((answer.status, &*answer.body), (200, &*expected));
    assert_eq!(answer.header("x-rows"), Some(&*sample().len().to_string()));
    let few = sample().into_iter().take(16).collect::<Vec<_>>();
    let few = few.iter().map(|text| &**text).collect::<Vec<_>>();
    assert_eq!(server.probabilities(&few, &LABELS), probabilities(&expected)[..16]);

    let lines = [r#"{"id": "a", "text": "one, \"two\""}"#, r#"{"id": "b", "text": "three"}"#].join("\n");
    let answer = server.post("/predict.csv?texts=true", lines.as_bytes());
    let mut rows = answer.body.lines().map(|line| line.rsplit_once(',').unwrap().0);
    assert_eq!(rows.next(), Some("ID,text"), "{answer:?}");
    assert_eq!(rows.collect::<Vec<_>>(), [r#"a,"one, ""two""""#, "b,three"]);
    let answer = server.post("/predict.csv?header=false&separator=%3B&text_column=1", b"1;x\n2;y\n");
    assert_eq!(answer.body.lines().count(), 3, "{answer:?}");

    let refused = |query: &str, body: &[u8]| server.post(&format!("/predict.csv{query}"), body).refusal(422);
    let bad = refused("", b"id,text\n1\n2,x\n");
    assert!(
        bad.starts_with("the table: ")
            && bad.contains("line 2")
            && bad.ends_with("skip_bad_rows=true to leave them out"),
        "{bad}"
    );
    assert!(refused("", b"a,b,c\n1,2,3\n").contains("header=false"));
    assert!(refused("?columns=3", b"").contains("unknown field `columns`"));
    assert!(refused("?format=xls", b"").contains("expected csv, jsonl or parquet"));
    let kept = server.post("/predict.csv?skip_bad_rows=true", b"id,text\n1\n2,x\n");
    assert_eq!(kept.body.lines().count(), 2, "{kept:?}");
    assert_eq!(kept.header("x-skipped-rows"), Some("1"));
    let long = format!("id,text\n1,{}\n2,x\n", "barcha ".repeat(100));
    assert_eq!(server.post("/predict.csv", long.as_bytes()).header("x-model-loads"), Some("1"));
    server.wait_until("rows=2 truncated=1");
    assert_eq!(server.figure("bert_xla_truncated_texts_total"), 1.0);
    let told = server.post("/predict.csv?header=false", b"7,\n8,x\n");
    assert_eq!(
        (told.header("x-rows-without-text"), told.header("x-columns")),
        (Some("1"), Some("text 1, id 0"))
    );
    // What is refused before it was read is read all the same: a client that sends it would miss why.
    for (path, status) in [("/predict.csv?columns=3", 422), ("/predict?a=b", 422), ("/nothing", 404)] {
        let body = vec![b'x'; 20_000_000];
        let length = body.len().to_string();
        let mut stream = TcpStream::connect(&server.host).unwrap();
        stream.write_all(server.head("POST", path, &[("content-length", &length)]).as_bytes()).unwrap();
        stream.write_all(&body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
    }
    let old = server.head("POST", "/predict.csv", &[("content-length", "0")]).replace("HTTP/1.1", "HTTP/1.0");
    assert!(ask(&server.host, &old, b"").unwrap().refusal(505).contains("HTTP/1.1"));
    let form =
        server.post_with("/predict.csv", b"--x", &[("content-type", "multipart/form-data; boundary=x")]);
    assert!(form.refusal(415).contains("--data-binary"));
}

#[test]
fn runs_answer_together() {
    let folder = empty_folder("serve_together");
    let runs = [demo().join("run"), other_run().to_owned()];
    let expected =
        probabilities(&predicted(&runs.each_ref().map(|run| &**run), &folder, &["--weights", "2,1"]));
    let other = runs[1].to_str().unwrap();
    let arguments = ["--run", other, "--weights", "2,1", "--batch-sizes", "1,8"];
    let server = Server::start(&runs[0], &folder.join("log"), &arguments);
    let texts = sample();
    for (texts, expected) in texts.chunks(20).zip(expected.chunks(20)) {
        let texts = texts.iter().map(|text| &**text).collect::<Vec<_>>();
        let answers = server.probabilities(&texts, &LABELS);
        answers.iter().zip(expected).for_each(|(answer, expected)| assert_near(answer, expected));
    }
    let tokens = server.post("/tokenize", br#"{"inputs": "Barcha", "model": 1}"#).json();
    assert_eq!(tokens[0][0]["text"], "[CLS]");
    assert!(
        server.post("/tokenize", br#"{"inputs": "x", "model": 2}"#).refusal(422).contains("2 of 2, from 0")
    );
    for (run, file) in [(0, "card.html"), (1, "history.jsonl"), (1, "dev_predictions.csv"), (0, "loss.png")] {
        assert_eq!(server.get(&format!("/model/{run}/{file}")).status, 200, "{run} {file}");
    }
    for path in [
        "/model/2/card.html",
        "/model/0/model.safetensors",
        "/model/0/..%2frun.json",
        "/model/x/card.html",
        "/nothing",
    ] {
        server.get(path).refusal(404);
    }
}

#[test]
fn what_is_asked_for_is_given() {
    let folder = empty_folder("serve_shapes");
    let mut server = Server::start(masked(), &folder.join("log"), &["--batch-sizes", "1,4", "--log", "json"]);
    let scores = |body: Json| server.post("/predict", body.to_string().as_bytes()).json();
    let counts = |answer: &Json| {
        answer.as_array().unwrap().iter().map(|row| row.as_array().unwrap().len()).collect::<Vec<_>>()
    };
    let all = scores(json!({"inputs": ["a", "b"], "probabilities": true}));
    assert_eq!(counts(&all), [3, 3]);
    let sorted =
        |row: &Json| row.as_array().unwrap().is_sorted_by(|a, b| a["score"].as_f64() >= b["score"].as_f64());
    assert!(all.as_array().unwrap().iter().all(sorted), "{all}");
    assert_eq!(counts(&scores(json!({"inputs": "a"}))), [1]);
    assert_eq!(counts(&scores(json!({"inputs": ["a"], "top_k": 2}))), [2]);
    assert_eq!(counts(&scores(json!({"inputs": ["a"], "parameters": {"top_k": 9}}))), [3]);
    assert_eq!(scores(json!({"inputs": []})), json!([]));
    assert_eq!(counts(&scores(json!({"inputs": "a", "top_k": null}))), [3]);
    let parameters = json!({"top_k": null, "function_to_apply": "softmax"});
    assert_eq!(counts(&scores(json!({"inputs": "a", "parameters": parameters}))), [3]);
    // Whatever a text is.
    assert_eq!(counts(&scores(json!({"inputs": ["", " ", "\u{0}", "\u{202e}x", "\u{1f600}"]}))), [1; 5]);

    // MAX_LENGTH is 24 tokens.
    let long = "barcha ".repeat(100_000);
    let body = json!({"inputs": ["a", long]}).to_string();
    let answer = server.post("/predict", body.as_bytes());
    assert_eq!((answer.status, answer.header("x-truncated-inputs")), (200, Some("1")));
    let body = json!({"inputs": ["a", "b ".repeat(30)], "truncate": false}).to_string();
    assert!(
        server.post("/predict", body.as_bytes()).refusal(422).starts_with("input 1, from 0, has more tokens")
    );
    let body = json!({"inputs": ["a", "b ".repeat(22)], "truncate": false}).to_string();
    assert_eq!(server.post("/predict", body.as_bytes()).header("x-truncated-inputs"), None);

    // What becomes no token isn't more than is read.
    let body =
        json!({"inputs": ["b ".repeat(22) + &" ".repeat(5000) + "\u{200b}"], "truncate": false}).to_string();
    assert_eq!(server.post("/predict", body.as_bytes()).status, 200);
    let tokens =
        server.post("/tokenize", json!({"inputs": "a b ".repeat(200_000)}).to_string().as_bytes()).json();
    assert_eq!(tokens[0].as_array().unwrap().len(), 24);

    let tokens = server.post("/tokenize", "{\"inputs\": [\"\u{e9}a\"]}".as_bytes()).json();
    let last = tokens[0].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["text"], &last["special"]), (&json!("[SEP]"), &json!(true)));

    assert_eq!(server.figure("bert_xla_truncated_texts_total"), 1.0);
    let line: Json = serde_json::from_str(&server.wait_until("/predict")).unwrap();
    // As all others are.
    let log = server.log();
    let messages = log.lines().map(|line| serde_json::from_str::<Json>(line).unwrap()["message"].clone());
    let messages = messages.map(|message| message.as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert!(messages[0].starts_with("Listening on "), "{log}");
    assert!(messages.iter().any(|message| message.starts_with("Ready after ")), "{log}");
    assert_eq!(
        (&line["route"], &line["status"], &line["method"]),
        (&json!("/predict"), &json!(200), &json!("POST"))
    );
    assert!(server.figure("bert_xla_texts_total") > 10.0);
    assert_eq!(server.figure("bert_xla_queue_texts"), 0.0);
    assert!(server.get("/metrics").body.ends_with("# EOF\n"));
}

#[test]
fn what_is_too_much_or_wrong_is_told_by_its_code() {
    let folder = empty_folder("serve_limits");
    let arguments = ["--max-body", "2000", "--max-inputs", "4", "--max-queue", "5", "--max-table", "3000"];
    let server = Server::start(masked(), &folder.join("log"), &arguments);
    let refused = |path: &str, body: &[u8], status| server.post(path, body).refusal(status);
    for body in [&b"{\"inputs\": \"\xff\"}"[..], b"", b"{", b"{\"inputs\": \"a\"} x", b"nul"] {
        refused("/predict", body, 400);
        refused("/tokenize", body, 400);
    }
    for body in [
        "null",
        "[]",
        "{}",
        r#"{"inputs": 5}"#,
        r#"{"inputs": ["a", 5]}"#,
        r#"{"inputs": "a", "topk": 1}"#,
        r#"{"inputs": "a", "top_k": 0}"#,
        r#"{"inputs": "a", "top_k": -1}"#,
        r#"{"inputs": {"a": "b"}}"#,
    ] {
        refused("/predict", body.as_bytes(), 422);
    }
    assert!(refused("/predict", br#"{"inputs": 5}"#, 422).contains("expected a text or a list of texts"));
    assert_eq!(refused("/predict", br#"["a", 2]"#, 422), "expected an object with `inputs`");
    let top = refused("/predict", br#"{"inputs": "a", "top_k": -1}"#, 422);
    assert!(top.contains("expected a whole number of 1 or more"), "{top}");
    assert!(refused("/predict?top_k=2", br#"{"inputs": "a"}"#, 422).contains("into the body"));
    let many = refused("/predict", br#"{"inputs": ["a", "b", "c", "d", "e"]}"#, 413);
    assert_eq!(many, "5 inputs, where a request may have 4; --max-inputs allows more");
    let large = json!({"inputs": "x".repeat(3000)}).to_string();
    assert!(refused("/predict", large.as_bytes(), 413).starts_with("the body has more than 2000 bytes"));
    refused("/predict.csv", "text\n".repeat(1000).as_bytes(), 413);
    // Far more than a socket holds: the answer comes all the same.
    let huge = vec![b'x'; 30 << 20];
    refused("/predict", &huge, 413);

    let text = server.get("/predict").refusal(405);
    assert!(text.contains("/openapi.json"));
    assert_eq!(server.post("/predict", br#"{"inputs": "still there"}"#).status, 200);
}

#[test]
fn more_than_can_wait_is_told_to_come_again() {
    let folder = empty_folder("serve_busy");
    let arguments =
        ["--batch-sizes", "1", "--max-queue", "300", "--max-inputs", "1000", "--time-out", "0.05"];
    let server = Server::start(masked(), &folder.join("log"), &arguments);
    // No more than can wait may come at a time.
    assert_eq!(server.get("/info").json()["limits"]["inputs"], 300);
    let body = json!({"inputs": vec!["a b c d e f g h"; 300]}).to_string();
    let answers = thread::scope(|scope| {
        let asks = (0..8).map(|_| scope.spawn(|| server.post("/predict", body.as_bytes())));
        let asks = asks.collect::<Vec<_>>();
        asks.into_iter().map(|ask| ask.join().unwrap()).collect::<Vec<_>>()
    });
    for answer in &answers {
        assert!(matches!(answer.status, 200 | 429 | 503), "{answer:?}");
        assert_eq!(answer.header("retry-after").is_some(), answer.status != 200);
    }
    // One takes all of the queue, so that others find it full.
    assert!(answers.iter().any(|answer| answer.status == 429), "{answers:?}");
    // Fewer than a table's rows are taken at a time.
    let small = Server::start(masked(), &folder.join("log"), &["--batch-sizes", "1", "--max-queue", "16"]);
    let table = fs::read(asset("sample.csv")).unwrap();
    let answer = small.post("/predict.csv", &table);
    assert_eq!(answer.body.lines().count(), 1 + sample().len());
}

#[test]
fn a_table_leaves_others_room_and_a_pause_ends_it() {
    let folder = empty_folder("serve_room");
    let arguments = ["--batch-sizes", "1", "--max-queue", "32", "--read-time-out", "1", "--log", "none"];
    let server = Server::start(masked(), &folder.join("log"), &arguments);
    let table = "id,text\n".to_owned() + &"1,a b c d e f g h\n".repeat(3000);
    thread::scope(|scope| {
        let labelled = scope.spawn(|| server.post("/predict.csv", table.as_bytes()));
        server.wait_for_figure("bert_xla_queue_texts", |texts| texts >= 8.0);
        for _ in 0..30 {
            assert_eq!(server.post("/predict", br#"{"inputs": "x"}"#).status, 200);
        }
        assert_eq!(labelled.join().unwrap().body.lines().count(), 3001);
    });
    // So much has come that at the slowest rate there would be minutes for the rest.
    let mut stream = TcpStream::connect(&server.host).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let head = server.head("POST", "/predict.csv", &[("content-length", "20000000")]);
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&vec![b'x'; 10_000_000]).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
}

#[test]
fn what_nobody_waits_for_is_not_computed() {
    let folder = empty_folder("serve_gone");
    let arguments = ["--batch-sizes", "1", "--max-queue", "9000"];
    let mut server = Server::start(masked(), &folder.join("log"), &arguments);
    let body = json!({"inputs": vec!["a b c d e f g h"; 250]}).to_string();
    let length = body.len().to_string();
    let head = server.head("POST", "/predict", &[("content-length", &length)]);
    let streams = (0..32).map(|_| {
        let mut stream = TcpStream::connect(&server.host).unwrap();
        stream.write_all((head.clone() + &body).as_bytes()).unwrap();
        stream
    });
    let streams = streams.collect::<Vec<_>>();
    server.wait_for_figure("bert_xla_queue_texts", |texts| texts >= 3000.0);
    drop(streams);
    server.wait_for_figure("bert_xla_queue_texts", |texts| texts == 0.0);
    let computed = server.figure("bert_xla_texts_total");
    assert!(computed < 6000.0, "{computed} of 8000 texts");
    // Those who have gone are counted and logged all the same.
    assert!(server.get("/metrics").body.contains("route=\"/predict\",status=\"499\""));
    server.wait_until("status=499");
}

#[test]
fn a_table_is_whole_or_seen_not_to_be() {
    let folder = empty_folder("serve_slow");
    let arguments = ["--time-out", "0.2", "--batch-sizes", "1", "--max-table", "40000000"];
    let server = Server::start(masked(), &folder.join("log"), &arguments);
    // More than sockets hold.
    let mut table = "text\n".to_owned();
    (0..1500).for_each(|_| table.push_str(&format!("{}\n", "barcha ".repeat(3000))));
    let length = table.len().to_string();
    let mut stream = TcpStream::connect(&server.host).unwrap();
    let head = server.head("POST", "/predict.csv?texts=true", &[("content-length", &length)]);
    stream.write_all((head + &table).as_bytes()).unwrap();
    // It is not read for a while.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !server.log().contains("wasn't labelled to its end") {
        assert!(Instant::now() < deadline, "{}", server.log());
        thread::sleep(Duration::from_millis(50));
    }
    let mut bytes = vec![];
    let ended = stream.read_to_end(&mut bytes);
    assert!(ended.is_err() || !bytes.ends_with(b"\r\n0\r\n\r\n"), "it looks whole");
    // A right to another is there again.
    assert_eq!(server.post("/predict.csv", b"text\nx\n").status, 200);
    let long = format!("text\n{}\n", "x".repeat(2_100_000));
    assert!(
        server.post("/predict.csv", long.as_bytes()).refusal(413).contains("a row may have 2000000 bytes")
    );
}

#[test]
fn who_may_ask_is_told_by_name_origin_and_key() {
    let folder = empty_folder("serve_guard");
    let body = br#"{"inputs": "a"}"#;
    let server = Server::start(
        masked(),
        &folder.join("log"),
        &[
            "--batch-sizes",
            "1",
            "--allow-origin",
            "https://page.example:443",
            "--allow-host",
            "model.example:8080",
        ],
    );
    let port = server.host.rsplit_once(':').unwrap().1.to_owned();
    let with = |headers: &[(&str, &str)]| server.post_with("/predict", body, headers);
    // A page whose name stands for this machine's address now.
    assert!(with(&[("host", "evil.example")]).refusal(421).contains("--allow-host"));
    with(&[("host", &format!("evil.example:{port}"))]).refusal(421);
    with(&[("host", "a"), ("host", "b")]).refusal(400);
    for host in [
        &*format!("localhost:{port}"),
        "model.example",
        "MODEL.example:80",
        "localhost.",
        &format!("[::1]:{port}"),
        "10.1.2.3",
    ] {
        assert_eq!(with(&[("host", host)]).status, 200, "{host}");
    }
    assert!(with(&[("origin", "https://evil.example")]).refusal(403).contains("--allow-origin"));
    with(&[("origin", "null")]).refusal(403);
    let own = with(&[("origin", &format!("http://{}", server.host))]);
    assert_eq!((own.status, own.header("access-control-allow-origin")), (200, None));
    let other = with(&[("origin", "https://page.example")]);
    assert_eq!(
        (other.status, other.header("access-control-allow-origin")),
        (200, Some("https://page.example"))
    );
    assert_eq!(other.header("vary"), Some("origin"));
    let ask_first = |origin| {
        let head = server.head(
            "OPTIONS",
            "/predict",
            &[("origin", origin), ("access-control-request-method", "POST")],
        );
        ask(&server.host, &head, b"").unwrap()
    };
    assert_eq!(ask_first("https://page.example").status, 204);
    ask_first("https://evil.example").refusal(403);
    let page = server.get("/");
    let policy = page.header("content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"),
        "{policy}"
    );
    for attribute in ["style=", "onclick", "onload", "<script>", "http:", "https:"] {
        assert!(!page.body.contains(attribute), "{attribute}");
    }
    drop(server);

    let keys = folder.join("keys");
    fs::write(&keys, "a key of some length\n").unwrap();
    let keys = keys.to_str().unwrap();
    let server =
        Server::start(masked(), &folder.join("log"), &["--batch-sizes", "1", "--api-key-file", keys]);
    let with = |headers: &[(&str, &str)]| server.post_with("/predict", body, headers);
    let refused = with(&[]);
    refused.refusal(401);
    assert!(refused.header("www-authenticate").unwrap().starts_with("Basic "));
    with(&[("authorization", "Bearer a key of some lengt")]).refusal(401);
    for path in ["/", "/info", "/metrics", "/openapi.json", "/model/0/card.html", "/nothing"] {
        server.get(path).refusal(401);
    }
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(with(&[("authorization", "Bearer a key of some length")]).status, 200);
    assert_eq!(with(&[("authorization", "Basic bWU6YSBrZXkgb2Ygc29tZSBsZW5ndGg=")]).status, 200);
    assert!(!server.log().contains("a key of"));
}

#[test]
fn every_route_is_described() {
    let folder = empty_folder("serve_openapi");
    let server = Server::start(masked(), &folder.join("log"), &["--batch-sizes", "1"]);
    let described = server.get("/openapi.json").json();
    let paths = described["paths"].as_object().unwrap();
    assert_eq!(described["info"]["version"], env!("CARGO_PKG_VERSION"));
    for (path, methods) in paths {
        let path = path.replace("{run}", "0").replace("{file}", "history.jsonl");
        for (method, described) in methods.as_object().unwrap() {
            let answer = match &**method {
                "get" => server.get(&path),
                _ => server.post(&path, br#"{"inputs": "a"}"#),
            };
            let known = described["responses"].as_object().unwrap();
            assert!(known.contains_key(&answer.status.to_string()), "{method} {path}: {answer:?}");
            assert_ne!(answer.status, 404, "{path}");
        }
    }
    // What an answer has is what is described, and no more.
    let fields = |name: &str| described["components"]["schemas"][name]["required"].clone();
    let names = |one: &Json| {
        let mut names = one.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        names.sort();
        names
    };
    let sorted = |fields: Json| {
        let mut fields = fields
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap().to_owned())
            .collect::<Vec<_>>();
        fields.sort();
        fields
    };
    assert_eq!(names(&server.get("/info").json()), sorted(fields("Info")));
    assert_eq!(names(&server.post("/predict", br#"{"inputs": "a"}"#).json()[0][0]), sorted(fields("Score")));
    assert_eq!(names(&server.post("/tokenize", br#"{"inputs": "a"}"#).json()[0][0]), sorted(fields("Token")));
    assert_eq!(names(&server.get("/nothing").json()), sorted(fields("Refusal")));
}

#[test]
fn what_cant_be_served_is_told() {
    let folder = empty_folder("serve_refused");
    let serve = |arguments: &[&str]| {
        let mut serve = command(&["serve", "--backend", "cpu", "--port", "0", "--run"]);
        serve.arg(masked()).args(arguments);
        fails(&mut serve, 2)
    };
    for host in ["0.0.0.0", "::"] {
        assert!(serve(&["--host", host]).contains("give --api-key-file, or insist by --without-key"));
    }
    assert!(serve(&["--host", "no.such.host.invalid"]).contains("no such address"));
    let keys = folder.join("keys");
    fs::write(&keys, "\n").unwrap();
    let keys = keys.to_str().unwrap();
    assert!(serve(&["--host", "0.0.0.0", "--api-key-file", keys]).contains("there is no key"));
    assert!(serve(&["--api-key-file", "none"]).contains("can't read none"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut again = command(&["serve", "--backend", "cpu", "--port", &port, "--run"]);
    assert!(fails(again.arg(masked()), 2).contains("choose another --port"));
    let mut none = command(&["serve", "--backend", "cpu", "--run"]);
    assert!(fails(none.arg(folder.join("none")), 2).contains("give the --output of a training run"));
}

#[test]
fn the_page_works_in_a_browser() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let modules = root.join("target/page/node_modules");
    let chromium = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
    let chromium = chromium.iter().find(|path| Path::new(path).exists());
    let has_node = Command::new("node").arg("--version").output().is_ok();
    let (Some(chromium), true, true) = (chromium, has_node, modules.join("axe-core").exists()) else {
        eprintln!(
            "skipped: the page in a browser: it takes Chromium, node, and target/page as .ci/run makes it"
        );
        return;
    };
    let folder = empty_folder("serve_page");
    let texts = sample();
    let mut table = "id,text\n".to_owned();
    texts.iter().cycle().take(599).enumerate().for_each(|(at, text)| {
        table.push_str(&format!("{at},\"{}\"\n", text.replace('"', "\"\"")));
    });
    table.push_str("599,\"unlike any other, \"\"this\"\" one\"\n");
    fs::write(folder.join("table.csv"), &table).unwrap();
    fs::write(folder.join("broken.csv"), "a,b,c\n1,2\n").unwrap();
    let server = Server::start(masked(), &folder.join("log"), &[]);
    let mut node = Command::new("node");
    node.arg(root.join("tests/page/page.mjs")).arg(format!("http://{}", server.host)).arg(&folder);
    node.args(["table.csv", "broken.csv"].map(|name| folder.join(name))).arg(server.pid().to_string());
    let done = node.env("NODE_MODULES", &modules).env("CHROMIUM", chromium).output().unwrap();
    assert!(done.status.success(), "{}{}", text(done.stdout), text(done.stderr));
    // What was downloaded is what a program is given.
    let expected = server.post("/predict.csv?probabilities=true&texts=true&separator=,", table.as_bytes());
    let downloaded = fs::read_to_string(folder.join("labelled.csv")).unwrap();
    assert_eq!(downloaded.lines().count(), expected.body.lines().count());
    for (found, expected) in downloaded.lines().zip(expected.body.lines()).skip(1) {
        let numbers =
            |line: &str| line.rsplitn(4, ',').take(3).map(|p| p.parse().unwrap()).collect::<Vec<f32>>();
        assert_near(&numbers(found), &numbers(expected));
    }
}
