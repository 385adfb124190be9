use super::*;

/// What gcloud 528.0.0 printed when an API answered so.
#[test]
fn failures_mean_what_the_api_said() {
    let of = |stderr: &str| {
        let failure = Failure::of(1, stderr, String::new());
        (failure.kind, failure.message)
    };
    let stock = "Create request issued for: [n]\nWaiting for operation [projects/p/locations/z/operations/op1] to \
                 complete...\n.....failed.\nERROR: (gcloud.compute.tpus.tpu-vm.create) {\n  \"code\": 8,\n  \"message\": \
                 \"There is no more capacity in the zone \\\"z\\\"; you can try in another zone [EID: 0x1]\"\n}\n";
    let unavailable = "ERROR: (gcloud.compute.tpus.tpu-vm.describe) HttpError accessing <http://127.0.0.1:1/v2/projects/p/\
                       locations/z/nodes/n?alt=json>: response: <{'status': 503}>, content <{\"error\": {\"code\": 503}}>\n\
                       This may be due to network connectivity issues. Please check your network settings.\n";
    let refused =
        |status: &str| format!("ERROR: (gcloud.compute.tpus.tpu-vm.describe) {status}: told. More.\n");
    assert_eq!(
        of(stock),
        (
            Kind::NoStock,
            "There is no more capacity in the zone \"z\"; you can try in another zone [EID: 0x1]".to_owned()
        )
    );
    for (status, kind) in [
        ("NOT_FOUND", Kind::NotFound),
        ("ALREADY_EXISTS", Kind::Exists),
        ("RESOURCE_EXHAUSTED", Kind::NoStock),
        ("INVALID_ARGUMENT", Kind::Invalid),
        ("PERMISSION_DENIED", Kind::Unknown),
        ("UNAUTHENTICATED", Kind::Unknown),
    ] {
        assert_eq!(of(&refused(status)), (kind, format!("{status}: told. More.")));
    }
    assert_eq!(of(unavailable).0, Kind::Unknown);
    // Of what isn't the API's, nothing follows, whatever words are in it.
    let crashed = "ERROR: gcloud crashed (KeyError): 'NOT_FOUND: name'\n";
    assert_eq!(of(crashed), (Kind::Unknown, crashed.trim().to_owned()));
    assert_eq!(of("NOT_FOUND: of nobody").0, Kind::Unknown);
    assert_eq!(of(""), (Kind::Unknown, "gcloud failed without a word".to_owned()));
    // A worker's own word counts before gcloud's remarks.
    let worker = "Using ssh batch size of 1. Attempting to SSH into 1 nodes with a total of 1 workers.\n\
                  SSH: Attempting to connect to worker 0...\nerror: w0: no run yet\n";
    assert_eq!(of(worker), (Kind::Unknown, "w0: no run yet".to_owned()));
}

#[test]
fn words_are_quoted_as_a_shell_takes_them() {
    for word in
        ["plain-1_./:=@%+,", "", "a b", "it's", "$HOME", "`id`", "a\\b", "*", "~", "new\nline", "\u{fc}"]
    {
        let output = Command::new("sh").arg("-c").arg(format!("printf %s {}", quote(word))).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
    }
}

/// A command that goes on for too long is ended with what it has started.
#[test]
fn patience_ends() {
    let gcloud = Gcloud { dry_run: None, is_quiet: true, lock: None };
    let call = Call::new(&["sh", "-c", "echo begun; sleep 1000 & wait"]);
    let Reply::Failed(failure) = gcloud.ask(&call, Duration::from_millis(300)).unwrap() else {
        panic!("it ended")
    };
    assert_eq!((failure.kind, &*failure.stdout), (Kind::Unknown, "begun\n"));
}
