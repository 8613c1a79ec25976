//! Histories made by hand, each of which breaks one rule: the checker says so, and says nothing of
//! one that breaks none.

use std::time::Duration;

use crate::checker::{self, Demands};
use crate::clock::MS;
use crate::history::{Event, What};

const DEMANDS: Demands = Demands {
    exclusive: true,
    keeps_data: true,
    has_handoffs: true,
    prompt: true,
    releases_at_limit: true,
    frugal: true,
    calm: false,
    takes_turns: Some(Duration::from_millis(300)),
    stuck_after: Some(Duration::from_millis(2000)),
};

/// Each: the rule, and what happened. Times are in ms: when, process, what, request, number,
/// before, text; a fencing token is the time of its grant.
const CASES: &[(Option<&str>, &str)] = &[
    (None, "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            30 4 Asked 1 500 0 a; 96 4 Granted 1 95 0; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 150 4 Signal 1 0 0 Expired;
            40 6 Asked 1 500 0 a; 200 6 Granted 1 190 0; 201 6 Held 1 0 201; 220 6 Held 1 0 220; 221 6 Ended 1 0 0"),
    (Some("one holder at a time"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 99 2 Held 1 0 99; 100 2 Ended 1 0 0;
            30 4 Asked 1 500 0 a; 96 4 Granted 1 95 0; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 141 4 Ended 1 0 0"),
    (Some("one run at a time"),
           "10 2 Delivered 1 500 0 e; 20 2 Began 1 15 0 e; 21 2 Held 1 0 21; 99 2 Held 1 0 99; 100 2 Done 1 0 0; 101 2 Answered 1 0 0 200;
            30 4 Delivered 1 500 0 e; 96 4 Began 1 95 0 e; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 141 4 Done 1 0 0; 142 4 Answered 1 0 0 200"),
    (Some("handled once"),
           "10 2 Delivered 1 500 0 e; 20 2 Answered 1 0 0 replayed;
            30 4 Delivered 1 500 0 e; 31 4 Began 1 30 0 e; 32 4 Held 1 0 32; 40 4 Held 1 0 40; 41 4 Done 1 0 0; 42 4 Answered 1 0 0 200"),
    (Some("tokens rise"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 19 0; 21 2 Held 1 0 21; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            92 4 Asked 1 500 0 a; 96 4 Granted 1 15 0; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 141 4 Ended 1 0 0"),
    (Some("each token once"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Ended 1 0 0; 11 4 Asked 1 500 0 a; 19 4 Granted 1 15 0; 20 4 Ended 1 0 0"),
    (Some("not trusted when the server gives it away"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            30 4 Asked 1 500 0 a; 85 4 Granted 1 80 0; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 141 4 Ended 1 0 0"),
    (Some("told before the server gives it away"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 90 2 Held 1 0 90; 180 2 Signal 1 0 0 Expired;
            30 4 Asked 1 500 0 a; 96 4 Granted 1 95 0; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 141 4 Ended 1 0 0"),
    (Some("a holder that is refused has lost the lock"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 30 2 Rejected 1 15 22; 40 2 Held 1 0 40; 41 2 Ended 1 0 0"),
    (Some("answered in time"), "10 2 Asked 1 500 0 a; 900 2 Refused 1 0 0 TimedOut"),
    (Some("answered in time"), "10 2 Asked 1 500 0 a"),
    (None, "10 2 Asked 1 500 0 a; 850 2 Stall 1 0 40; 900 2 Refused 1 0 0 TimedOut"),
    (None, "10 2 Asked 1 500 0 a; 900 2 Killed 0 0 0"),
    (Some("no lock is stuck"),
           "10 2 Asked 1 500 0 a; 11 2 Granted 1 10 0; 20 2 Ended 1 0 0; 12 4 Asked 1 5000 0 a; 2900 4 Refused 1 0 0 TimedOut"),
    (None, "10 2 Asked 1 500 0 a; 11 2 Granted 1 10 0; 20 2 Ended 1 0 0; 12 4 Asked 1 5000 0 a; 2900 4 Refused 1 0 0 TimedOut;
            50 0 FaultBegins 1 0 0; 1000 0 FaultEnds 1 0 0"),
    // Another runtime of the process did not run: that is no reason.
    (Some("answered in time"), "10 2 Asked 1 500 0 a; 850 2 Stall 2 0 40; 900 2 Refused 1 0 0 TimedOut"),
    // Told twice, by the one that blocks the thread and by the pulse: it counts once.
    (Some("answered in time"),
           "10 2 Asked 1 500 0 a; 450 2 Stall 1 0 40; 451 2 Stall 1 0 40; 1250 2 Refused 1 0 0 TimedOut"),
    (Some("nothing panics"), "10 2 Panicked 0 0 0 at-the-disco"),
    (Some("no success past the lease"),
           "10 2 Delivered 1 500 0 e; 20 2 Began 1 15 0 e; 21 2 Held 1 0 21; 300 2 NotHeld 1 0 300; 300 2 Done 1 200 300; 301 2 Ended 1 0 0;
            302 2 Answered 1 0 0 200"),
    (None, "10 2 Delivered 1 500 0 e; 20 2 Began 1 15 0 e; 21 2 Held 1 0 21; 300 2 NotHeld 1 0 300; 300 2 Done 1 200 300; 301 2 Ended 1 0 0;
            302 2 Answered 1 0 0 503"),
    (None, "10 2 Delivered 1 500 0 event:1; 20 2 Began 1 15 0 event:1; 21 2 Held 1 0 21; 300 2 NotHeld 1 0 300; 300 2 Done 1 200 300; 301 2 Ended 1 0 0;
            302 2 Answered 1 0 0 200"),
    (Some("no success past the lease"),
           "10 2 Delivered 1 500 0 event:1; 20 2 Began 1 15 0 event:1; 21 2 Held 1 0 21; 300 2 NotHeld 1 0 300; 300 2 Done 1 200 300; 301 2 Ended 1 0 0;
            302 2 Answered 1 0 0 200; 200 4 Delivered 1 500 0 event:1; 290 4 Began 1 285 0 event:1; 291 4 Ended 1 0 0; 292 4 Answered 1 0 0 503"),
    (Some("no run while a finished one's lease is good"),
           "10 2 Delivered 1 500 0 event:1; 20 2 Began 1 15 0 event:1; 21 2 Held 1 0 21; 40 2 Held 1 0 40; 40 2 Done 1 200 540; 41 2 Ended 1 0 0;
            42 2 Answered 1 0 0 200; 50 4 Delivered 1 500 0 event:1; 300 4 Began 1 290 0 event:1; 301 4 Held 1 0 301; 302 4 Held 1 0 302;
            310 4 Done 1 200 800; 311 4 Ended 1 0 0; 312 4 Answered 1 0 0 200"),
    // It ran out, or was to be forgotten.
    (None, "10 2 Delivered 1 500 0 event:1; 20 2 Began 1 15 0 event:1; 21 2 Held 1 0 21; 40 2 Held 1 0 40; 40 2 Done 1 200 540; 41 2 Ended 1 0 0;
            42 2 Answered 1 0 0 200; 50 4 Delivered 1 700 0 event:1; 600 4 Began 1 590 0 event:1; 601 4 Held 1 0 601; 602 4 Held 1 0 602;
            610 4 Done 1 500 1100; 611 4 Ended 1 0 0; 612 4 Answered 1 0 0 500; 613 6 Delivered 1 500 0 event:1; 620 6 Began 1 615 0 event:1;
            621 6 Held 1 0 621; 622 6 Ended 1 0 0; 623 6 Answered 1 0 0 503"),
    (Some("a holder that held for too long gives the lock back"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 500 2 Signal 1 0 0 MaxHold; 100 4 Asked 1 2000 0 a;
            1000 4 Granted 1 990 0; 1001 4 Ended 1 0 0"),
    (None, "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 500 2 Signal 1 0 0 MaxHold; 100 4 Asked 1 2000 0 a;
            510 4 Granted 1 505 0; 511 4 Ended 1 0 0"),
    // The one with the shorter time to live granted it, the other trusted it for its own.
    (Some("one holder at a time"),
           "10 2 Asked 1 5000 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 1100 2 Held 1 0 1100; 1101 2 Ended 1 0 0;
            400 4 Asked 1 500 0 a; 401 4 Granted 1 400 0; 402 4 Held 1 0 402; 410 4 Held 1 0 410; 411 4 Ended 1 0 0"),
    // The locks of two databases have nothing to do with each other.
    (None, "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 99 2 Held 1 0 99; 100 2 Ended 1 0 0;
            30 3 Asked 1 500 0 1:a; 46 3 Granted 1 45 0; 47 3 Held 1 0 47; 140 3 Held 1 0 140; 141 3 Ended 1 0 0"),
    (Some("no lock is an orphan"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 30 0 Seen 0 500 29 a p:1; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            800 0 Seen 0 500 800 a p:2; 900 0 Seen 0 500 900 a p:2; 1100 0 Seen 0 500 1100 a p:2; 1300 0 Seen 0 500 1300 a p:2"),
    // A process begins to wait for it.
    (Some("no lock is an orphan"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 30 0 Seen 0 500 29 a p:1; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            800 0 Seen 0 500 800 a p:2; 900 0 Seen 0 500 900 a p:2; 1100 0 Seen 0 500 1100 a p:2!; 1300 0 Seen 0 500 1300 a p:2!"),
    // It has a holder, of that process. It is not renewed, or every time another's.
    (None, "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 30 0 Seen 0 500 29 a p:1; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            750 2 Asked 3 500 0 a; 790 2 Granted 3 770 0; 800 0 Seen 0 500 800 a p:2; 900 0 Seen 0 500 900 a p:2; 1100 0 Seen 0 500 1100 a p:2;
            1300 0 Seen 0 500 1300 a p:2"),
    (None, "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 30 0 Seen 0 500 29 a p:1; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            800 0 Seen 0 500 800 a p:2; 900 0 Seen 0 400 900 a p:2; 1100 0 Seen 0 200 1100 a p:2; 1250 0 Seen 0 50 1250 a p:2"),
    (None, "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 30 0 Seen 0 500 29 a p:1; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            800 0 Seen 0 500 800 a p:2; 900 0 Seen 0 500 900 a p:3; 1100 0 Seen 0 500 1100 a p:4; 1300 0 Seen 0 500 1300 a p:5"),
    (Some("Redis is not kept busy"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 2000 2 Ended 1 0 0; 1500 0 Commands 0 500 1000"),
    (None, "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 2000 2 Ended 1 0 0; 1500 0 Commands 0 50 1000"),
];

/// Of locks that are shared, and of several that are held together.
const SHARED_CASES: &[(Option<&str>, &str)] = &[
    // Two of one process and one of another read, then one writes, then one reads.
    (None, "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0 shared; 21 2 Held 1 0 21; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            30 2 Asked 3 500 0 a; 31 2 Granted 3 15 0 shared; 32 2 Held 3 0 32; 80 2 Held 3 0 80; 81 2 Ended 3 0 0;
            30 4 Asked 1 500 0 a; 46 4 Granted 1 45 0 shared; 47 4 Held 1 0 47; 85 4 Held 1 0 85; 86 4 Ended 1 0 0;
            50 6 Asked 1 500 0 a; 96 6 Granted 1 95 0; 97 6 Held 1 0 97; 140 6 Held 1 0 140; 141 6 Ended 1 0 0;
            50 8 Asked 1 500 0 a; 150 8 Granted 1 145 0 shared; 151 8 Held 1 0 151; 155 8 Held 1 0 155; 156 8 Ended 1 0 0"),
    // The share of one process may be older than that of another, which one joins later.
    (None, "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0 shared; 21 2 Held 1 0 21; 200 2 Held 1 0 200; 201 2 Ended 1 0 0;
            30 4 Asked 1 500 0 a; 46 4 Granted 1 45 0 shared; 47 4 Held 1 0 47; 85 4 Held 1 0 85; 86 4 Ended 1 0 0;
            90 2 Asked 3 500 0 a; 91 2 Granted 3 15 0 shared; 92 2 Held 3 0 92; 95 2 Held 3 0 95; 96 2 Ended 3 0 0"),
    (Some("one holder at a time"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0 shared; 21 2 Held 1 0 21; 99 2 Held 1 0 99; 100 2 Ended 1 0 0;
            30 4 Asked 1 500 0 a; 96 4 Granted 1 95 0; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 141 4 Ended 1 0 0"),
    (Some("one holder at a time"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 99 2 Held 1 0 99; 100 2 Ended 1 0 0;
            30 4 Asked 1 500 0 a; 96 4 Granted 1 95 0 shared; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 141 4 Ended 1 0 0"),
    // A reader that is long, one that is short, and a writer that comes in between.
    (Some("one holder at a time"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0 shared; 21 2 Held 1 0 21; 99 2 Held 1 0 99; 100 2 Ended 1 0 0;
            10 6 Asked 1 500 0 a; 22 6 Granted 1 16 0 shared; 23 6 Held 1 0 23; 30 6 Held 1 0 30; 31 6 Ended 1 0 0;
            30 4 Asked 1 500 0 a; 50 4 Granted 1 45 0; 51 4 Held 1 0 51; 80 4 Held 1 0 80; 81 4 Ended 1 0 0"),
    (Some("tokens rise"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 19 0; 21 2 Held 1 0 21; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            92 4 Asked 1 500 0 a; 96 4 Granted 1 15 0 shared; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 141 4 Ended 1 0 0"),
    (Some("tokens rise"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 19 0 shared; 21 2 Held 1 0 21; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            92 4 Asked 1 500 0 a; 96 4 Granted 1 15 0; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 141 4 Ended 1 0 0"),
    (Some("each token once"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0 shared; 21 2 Ended 1 0 0; 11 4 Asked 1 500 0 a; 19 4 Granted 1 15 0 shared; 20 4 Ended 1 0 0"),
    (Some("each token once"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0 shared; 21 2 Ended 1 0 0; 22 2 Asked 3 500 0 a; 23 2 Granted 3 15 0; 24 2 Ended 3 0 0"),
    (Some("not trusted when the server gives it away"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0 shared; 21 2 Held 1 0 21; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            30 4 Asked 1 500 0 a; 85 4 Granted 1 80 0; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 141 4 Ended 1 0 0"),
    (Some("told before the server gives it away"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0 shared; 21 2 Held 1 0 21; 90 2 Held 1 0 90; 180 2 Signal 1 0 0 Expired;
            30 4 Asked 1 500 0 a; 96 4 Granted 1 95 0; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 141 4 Ended 1 0 0"),
    // To another that shares it, nothing is given away.
    (None, "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0 shared; 21 2 Held 1 0 21; 90 2 Held 1 0 90; 180 2 Signal 1 0 0 Expired;
            30 4 Asked 1 500 0 a; 85 4 Granted 1 80 0 shared; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 141 4 Ended 1 0 0"),
    // One is held for too long, and another that shares it stays.
    (None, "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0 shared; 21 2 Held 1 0 21; 500 2 Signal 1 0 0 MaxHold;
            10 6 Asked 1 500 0 a; 20 6 Granted 1 16 0 shared; 21 6 Held 1 0 21; 900 6 Held 1 0 900; 901 6 Ended 1 0 0;
            100 4 Asked 1 2000 0 a; 1000 4 Granted 1 990 0; 1001 4 Ended 1 0 0"),
    (Some("a holder that held for too long gives the lock back"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0 shared; 21 2 Held 1 0 21; 500 2 Signal 1 0 0 MaxHold; 100 4 Asked 1 2000 0 a;
            1000 4 Granted 1 990 0; 1001 4 Ended 1 0 0"),
    // One of several is lost.
    (None, "10 2 AskedAll 1 500 0 a; 10 2 AskedAll 3 500 0 b; 20 2 Granted 1 15 0 with-1; 20 2 Granted 3 15 0 with-1; 21 2 Held 1 0 21;
            21 2 Held 3 0 21; 90 2 Signal 1 0 0 Expired; 100 2 NotHeld 1 0 100; 100 2 NotHeld 3 0 100; 101 2 Ended 1 0 0; 101 2 Ended 3 0 0"),
    (Some("to lose one of several locks is to lose all"),
           "10 2 AskedAll 1 500 0 a; 10 2 AskedAll 3 500 0 b; 20 2 Granted 1 15 0 with-1; 20 2 Granted 3 15 0 with-1; 21 2 Held 1 0 21;
            21 2 Held 3 0 21; 90 2 Signal 1 0 0 Expired; 100 2 Held 1 0 99; 100 2 Held 3 0 99; 101 2 Ended 1 0 0; 101 2 Ended 3 0 0"),
    // One that waits for another lock may have this one.
    (None, "10 2 AskedAll 1 4000 0 a; 10 2 AskedAll 3 4000 0 b; 12 4 Asked 1 5000 0 a; 2900 4 Granted 1 2890 0; 2901 4 Ended 1 0 0;
            2895 2 Refused 1 0 0 TimedOut; 2895 2 Refused 3 0 0 TimedOut"),
    (Some("answered in time"), "10 2 AskedAll 1 500 0 a"),
    // A request was refused one lock, and its process renews the other; one that asks later cannot
    // explain it.
    (Some("no lock is an orphan"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 30 0 Seen 0 500 29 a p:1; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            700 2 AskedAll 3 500 0 a; 700 2 AskedAll 5 500 0 b; 760 2 Refused 3 0 0 TimedOut; 760 2 Refused 5 0 0 TimedOut;
            800 0 Seen 0 500 800 a p:2; 1500 0 Seen 0 500 1500 a p:2; 1700 0 Seen 0 500 1700 a p:2; 1900 0 Seen 0 500 1900 a p:2;
            2100 0 Seen 0 500 2100 a p:2"),
    (None, "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 30 0 Seen 0 500 29 a p:1; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            700 2 AskedAll 3 1500 0 a; 700 2 AskedAll 5 1500 0 b; 2160 2 Refused 3 0 0 TimedOut; 2160 2 Refused 5 0 0 TimedOut;
            800 0 Seen 0 500 800 a p:2; 1500 0 Seen 0 500 1500 a p:2; 1700 0 Seen 0 500 1700 a p:2; 1900 0 Seen 0 500 1900 a p:2;
            2100 0 Seen 0 500 2100 a p:2"),
    // A share is renewed by a process that another shares the lock with, or by none.
    (Some("no lock is an orphan"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 30 0 Seen 0 500 29 a p:1; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            800 0 Seen 0 500 800 a p:2-shared; 800 0 Seen 0 500 800 a q:2-shared; 900 0 Seen 0 500 900 a p:2-shared;
            900 0 Seen 0 500 900 a q:2-shared; 1100 0 Seen 0 500 1100 a p:2-shared; 1300 0 Seen 0 500 1300 a p:2-shared"),
    // A process has turn after turn while a request of another waits; or lets others in to share.
    (Some("none is passed over again and again"),
           "10 2 Asked 1 900 0 a; 11 4 Asked 1 500 0 a; 12 4 Granted 1 12 0; 13 4 Ended 1 0 0; 14 4 Asked 3 500 0 a; 15 4 Granted 3 15 0;
            16 4 Ended 3 0 0; 17 4 Asked 5 500 0 a; 18 4 Granted 5 18 0; 19 4 Ended 5 0 0; 20 4 Asked 7 500 0 a; 21 4 Granted 7 21 0;
            22 4 Ended 7 0 0; 25 2 Granted 1 25 0; 26 2 Ended 1 0 0"),
    // Its own process shares the lock meanwhile.
    (None, "8 2 Asked 9 500 0 a; 9 2 Granted 9 9 0 shared; 23 2 Ended 9 0 0; 10 2 Asked 1 900 0 a; 11 4 Asked 1 500 0 a;
            12 4 Granted 1 12 0 shared; 13 4 Ended 1 0 0; 14 4 Asked 3 500 0 a; 15 4 Granted 3 15 0 shared; 16 4 Ended 3 0 0;
            17 4 Asked 5 500 0 a; 18 4 Granted 5 18 0 shared; 19 4 Ended 5 0 0; 20 4 Asked 7 500 0 a; 21 4 Granted 7 21 0 shared;
            22 4 Ended 7 0 0; 25 2 Granted 1 25 0; 26 2 Ended 1 0 0"),
    (None, "10 2 Asked 1 900 0 a; 11 4 Asked 1 500 0 a; 12 4 Granted 1 12 0; 13 4 Ended 1 0 0; 14 4 Asked 3 500 0 a; 15 4 Granted 3 15 0;
            16 4 Ended 3 0 0; 17 4 Asked 5 500 0 a; 18 4 Granted 5 18 0; 19 4 Ended 5 0 0; 20 6 Asked 7 500 0 a; 21 6 Granted 7 21 0;
            22 6 Ended 7 0 0; 25 2 Granted 1 25 0; 26 2 Ended 1 0 0"),
    (None, "10 2 Asked 1 900 0 a; 11 4 Asked 1 500 0 a; 12 4 Granted 1 12 0; 13 4 Ended 1 0 0; 14 4 Asked 3 500 0 a; 15 4 Granted 3 15 0;
            16 4 Ended 3 0 0; 17 4 Asked 5 500 0 a; 18 4 Granted 5 18 0; 19 4 Ended 5 0 0; 20 4 Asked 7 500 0 a; 21 4 Granted 7 21 0;
            22 4 Ended 7 0 0; 25 2 Granted 1 25 0; 26 2 Ended 1 0 0; 14 0 FaultBegins 1 0 0; 15 0 FaultEnds 1 0 0"),
    (Some("no share lets requests in past one that waits"),
           "5 4 Asked 1 500 0 a; 6 4 Granted 1 6 0 shared; 700 4 Ended 1 0 0; 10 2 Asked 1 1900 0 a; 650 4 Asked 3 500 0 a;
            651 4 Granted 3 6 0 shared; 652 4 Ended 3 0 0; 900 4 Asked 5 500 0 a; 901 4 Granted 5 6 0 shared; 902 4 Ended 5 0 0;
            910 2 Granted 1 910 0; 911 2 Ended 1 0 0"),
    (None, "5 4 Asked 1 500 0 a; 6 4 Granted 1 6 0 shared; 700 4 Ended 1 0 0; 10 2 Asked 1 1900 0 a; 650 4 Asked 3 500 0 a;
            651 4 Granted 3 6 0 shared; 652 4 Ended 3 0 0; 910 2 Granted 1 910 0; 911 2 Ended 1 0 0"),
];

/// Where nothing is wrong all along.
const CALM_CASES: &[(Option<&str>, &str)] = &[
    (
        Some("no trouble where nothing is wrong"),
        "10 2 Asked 1 500 0 a; 20 2 Refused 1 0 0 Unavailable",
    ),
    (
        Some("no trouble where nothing is wrong"),
        "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 900 2 Signal 1 0 0 Expired",
    ),
    (
        Some("no trouble where nothing is wrong"),
        "10 2 Delivered 1 500 0 e; 20 2 Answered 1 0 0 503",
    ),
    (
        None,
        "10 2 Delivered 1 500 0 e; 20 2 Answered 1 0 0 409; 30 2 Asked 3 500 0 a; 31 2 Refused 3 0 0 TimedOut",
    ),
    // The machine had other things to do.
    (
        None,
        "10 2 Asked 1 500 0 a; 300 2 Stall 1 0 100; 310 2 Refused 1 0 0 Unavailable",
    ),
];

/// Returns the cases that the checker does not judge rightly.
pub fn wrong() -> Vec<String> {
    let mut wrong = Vec::new();
    let calm = Demands {
        calm: true,
        ..DEMANDS
    };
    let cases = CASES.iter().chain(SHARED_CASES);
    let cases = cases.map(|case| (case, &DEMANDS));
    for ((rule, lines), demands) in cases.chain(CALM_CASES.iter().map(|case| (case, &calm))) {
        let mut events: Vec<Event> = lines.split(';').map(|line| in_ms(line.trim())).collect();
        events.sort_by_key(|event| event.at);
        let report = checker::check(&events, &[], demands);
        let broken: Vec<_> = report
            .violations
            .iter()
            .map(|violation| violation.rule)
            .collect();
        let is_right = match rule {
            Some(rule) => broken.contains(rule),
            None => broken.is_empty(),
        };
        if !is_right {
            wrong.push(format!("expected {rule:?}, found {broken:?}: {lines}"));
        }
    }
    let back = [("a:log".to_owned(), vec![3, 5, 4])];
    if checker::check(&[], &back, &DEMANDS).violations.len() != 1 {
        wrong.push("a store that goes back".to_owned());
    }
    wrong
}

fn in_ms(line: &str) -> Event {
    // The text may be empty.
    let line = if line.split(' ').count() < 7 {
        format!("{line} ")
    } else {
        line.to_owned()
    };
    let mut event = crate::history::parse(&line).expect(&line);
    // A blank within the text would look like another field.
    event.text = event.text.replace('-', " ");
    (event.at, event.before) = (event.at * MS, event.before * MS);
    event.number *= match event.what {
        What::Granted | What::Began => 1000 * 1024,
        What::Done | What::Commands => 1,
        _ => MS,
    };
    event
}
