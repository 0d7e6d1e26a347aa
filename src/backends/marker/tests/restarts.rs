//! Beside a glowd that lives, and after one that was killed.

use super::*;

#[test]
fn defect_08_a_restart_after_kill_9_needs_no_help() {
    const TEST: &str = "restarts::defect_08_a_restart_after_kill_9_needs_no_help";
    if was_child() {
        return;
    }
    in_namespace(|| {
        let before = state();
        Other::attached(TEST, "clsact").kill();
        assert!(state().contains("glowd:marker"), "the filter outlives its maker");
        let successor = clsact().unwrap();
        assert_eq!(state().matches("glowd:marker").count(), 2);
        drop(successor);
        assert_eq!(state(), before);

        // The next one may use tcx.
        Other::attached(TEST, "clsact").kill();
        let successor = marker(&[("attach", text("tcx"))]).unwrap();
        assert_eq!(state(), before);
        drop(successor);

        // Somebody else has come to use the qdisc: the successor inherits it.
        Other::attached(TEST, "clsact").kill();
        let foreign = Foreign::new(Hook::Egress, 7);
        let successor = clsact().unwrap();
        foreign.check("after the successor's start");
        assert_eq!(state().matches("glowd:marker").count(), 2);
        tc::delete_filter(&mut Socket::route().unwrap(), 1, &foreign.filter).unwrap();
        drop(successor);
        assert_eq!(state(), before);

        // With tcx the kernel cleans up.
        Other::attached(TEST, "tcx").kill();
        eventually("tcx links die with the process", || tcx("lo", Hook::Egress).is_empty());
        assert_eq!(state(), before);
    });
}

#[test]
fn clean_removes_what_a_killed_glowd_has_left_and_nothing_else() {
    const TEST: &str = "restarts::clean_removes_what_a_killed_glowd_has_left_and_nothing_else";
    if was_child() {
        return;
    }
    in_namespace(|| {
        let before = state();
        clean(&[]).unwrap();
        assert_eq!(state(), before, "nothing was there");
        for names in [vec![], vec!["lo".to_owned()]] {
            Other::attached(TEST, "clsact").kill();
            clean(&names).unwrap();
            assert_eq!(state(), before);
        }
        clean(&["lo".into(), "nope0".into()]).unwrap_err();

        // The defect in flowd-go: a qdisc of others was removed (10).
        run("tc qdisc add dev lo clsact");
        let empty = state();
        clean(&[]).unwrap();
        assert_eq!(state(), empty);
        let foreign = Foreign::new(Hook::Egress, 1);
        clean(&[]).unwrap();
        foreign.check("after a clean-up with nothing to clean");
        Other::attached(TEST, "clsact").kill();
        clean(&[]).unwrap();
        foreign.check("after a clean-up");
        assert!(!state().contains("glowd"), "{}", state());
    });
}

#[test]
fn a_live_glowd_is_not_disturbed() {
    const TEST: &str = "restarts::a_live_glowd_is_not_disturbed";
    if was_child() {
        return;
    }
    in_namespace(|| {
        for way in ["clsact", "tcx"] {
            let other = Other::attached(TEST, way);
            let before = (state(), tcx("lo", Hook::Egress));
            let pid = other.0.id().to_string();
            for second in ["clsact", "tcx", "auto"] {
                let refusal = marker(&[("attach", text(second))]).err().unwrap();
                assert_eq!(refusal.class(), Class::Os);
                let refusal = refusal.to_string();
                assert!(refusal.starts_with("lo: another glowd"), "{refusal}");
                assert!(refusal.contains(&pid), "{refusal}");
            }
            if way == "clsact" {
                let refusal = clean(&["lo".into()]).unwrap_err().to_string();
                assert!(refusal.contains(&pid), "{refusal}");
            }
            clean(&[]).expect("it is passed by");
            assert_eq!((state(), tcx("lo", Hook::Egress)), before);
        }
    });
}
