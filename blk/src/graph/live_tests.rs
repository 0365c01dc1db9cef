//! What stays and what is new when a graph is changed, and what a record says of it.

use super::*;

const DISK: &str = "volume a\ntype storage/null\noption size 1M\nend-volume\n";

fn live(text: &str) -> Live {
    let plan = Plan::parse(text).unwrap();
    let graph = plan.graph(&Kept::default()).unwrap();
    Live::new(plan, graph, Vec::new())
}

fn over(below: &str, name: &str, delay: &str) -> String {
    format!("volume {name}\ntype debug/delay-gen\noption delay {delay}\nsubvolumes {below}\nend-volume\n")
}

fn next(live: &Live, text: &str) -> Result<Live, GraphError> {
    live.next(Plan::parse(text).unwrap(), BTreeMap::new(), 1, &Kept::default())
}

fn new(now: &Live, before: &Live) -> Vec<String> {
    now.volumes_without(before).map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn volumes_that_are_the_same_stay_wherever_they_stand() {
    let first = live(&format!("{DISK}{}", over("a", "b", "1ms")));
    let inserted =
        next(&first, &format!("{DISK}{}{}", over("a", "x", "5ms"), over("x", "b", "1ms"))).unwrap();
    assert_eq!(new(&inserted, &first), ["x"]);
    let set = next(&inserted, &format!("{DISK}{}", over("a", "b", "2ms"))).unwrap();
    assert_eq!(
        (new(&set, &inserted), new(&inserted, &set)),
        (vec!["b".into()], vec!["x".into(), "b".into()])
    );
    let same = next(&set, &set.text()).unwrap();
    assert!(new(&same, &set).is_empty());
}

#[test]
fn a_disk_that_the_guest_would_not_take_for_the_same_is_refused() {
    let disk = live(DISK);
    let told = next(&disk, &DISK.replace("1M", "2M")).unwrap_err().problem;
    assert!(told.starts_with("the guest was promised another size"), "{told}");
}

#[test]
fn a_record_names_what_came_live_and_is_the_same_graph() {
    let plan = Plan::parse(DISK).unwrap();
    let graph = plan.graph(&Kept::default()).unwrap();
    let gifts = vec!["blk@3.a.image".to_owned(), "blk@12.b.lost".to_owned()];
    let record = Live::new(plan, graph, gifts.clone()).record();
    assert_eq!(recorded(&record).collect::<Vec<_>>(), gifts);
    assert_eq!(text_of(&Plan::parse(&record).unwrap()), live(DISK).text());
    assert_eq!((last_number(&gifts), last_number(&[])), (12, 0));
    assert_eq!(recorded(DISK).count(), 0);
}

#[test]
fn values_come_back_as_they_were_written() {
    let text = "volume a\ntype storage/file\noption path \"/a b/\\\"c\\\\\"\nend-volume\n";
    let plan = Plan::parse(text).unwrap();
    let again = Plan::parse(&text_of(&plan)).unwrap();
    assert!(again.volumes()[0].is_same(&plan.volumes()[0]));
}

#[test]
fn what_no_record_names_is_let_go_of() {
    let fd = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let names = ["blk@1.a.image", "blk@2.a.image", "blk.a.image", "stats"];
    let kept = Kept::of(names.map(|name| (name.to_owned(), fd())).into());
    assert_eq!(claim("#: blk@2.a.image\n", &kept), ["blk@2.a.image"]);
    assert_eq!(kept.names(), ["blk.a.image", "stats"]);
}
