//! One session, its replicas, its client and its Redis.

use std::sync::Arc;

use testkit::redis::RedisServer;
use uuid::Uuid;

use super::client::{Client, Followed};
use super::holder::{ANSWER, End, Holder};
use super::{Action, Fate, REPLICAS};
use crate::generation::writer_state::WriterState;
use crate::session::model::User;
use crate::session::store::{
    Acceptance, Attached, CancelReply, Cancellation, Claim, ClaimAttempt, Clearing, IdempotencyKey,
    NewTurn, OpenTurn, Proposal, Restored, Selection, Transfer, Turn, TurnCopy, bucket, channel,
};
use crate::session::{
    Anchor, GenerationId, Message, Owner, SessionId, Store, TurnSpec, stored_message,
};

/// Rounds after which everything must have ended.
const ROUNDS: usize = 400;
/// Claims of a turn for its end after one failover, at most.
const CLAIMS: u32 = 3;

/// A turn that Redis accepted.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct SubmittedTurn {
    pub(super) generation: GenerationId,
    key: Option<u8>,
    pub(super) question: String,
    /// Whether the client got the acceptance.
    pub(super) acknowledged: bool,
    /// Whether a clear that a failover lost was still to be applied again: it may clear this turn,
    /// too. So it may a turn that it had cleared before and that was submitted again with its key.
    pub(super) before_redo: bool,
    /// Whether the session was anonymous when the turn was accepted.
    pub(super) anonymous: bool,
    /// Whether a clear came after the turn.
    pub(super) cleared: bool,
    pub(super) deleted: bool,
    pub(super) cancelled: bool,
    /// Whether a failover lost the cancel, and a holder wrote before the cancel was applied again.
    pub(super) written_after_cancel: bool,
    /// Whether a holder ended the turn after a cancel that a failover lost.
    pub(super) ended_after_cancel: bool,
    pub(super) rewound: bool,
    /// The holders whose end Redis accepted, in this order.
    pub(super) enders: Vec<usize>,
}

/// A copy that replica 0 keeps for another replica. Copies of cancels and clears are not needed:
/// replica 0 makes these itself.
struct SentCopy {
    sender: usize,
    turn: TurnCopy,
    /// Text and end of the answer, once that has ended.
    end: Option<(String, End)>,
}

/// A write that replica 0 applies again after a failover.
enum Redo {
    Cancel(Cancellation),
    Clear(Clearing),
    Select(Selection),
    Transfer(Transfer),
}

pub(super) struct World<'a> {
    redis: &'a RedisServer,
    pub(super) stores: &'a [Store],
    pub(super) session: SessionId,
    /// The owner of the session: a user, once one has claimed it.
    pub(super) owner: Owner,
    pub(super) alive: [bool; REPLICAS],
    pub(super) holders: Vec<Holder>,
    pub(super) submissions: Vec<SubmittedTurn>,
    pub(super) client: Client,
    pub(super) failovers: usize,
    /// Whether a failover lost the session with its claim, and the user created it again.
    pub(super) started_again: bool,
    copies: Vec<SentCopy>,
    redos: Vec<Redo>,
    /// The redos that were not applied since the last failover.
    pending: Vec<usize>,
    /// The time of the session's epoch, as the last acknowledged clear or turn left it.
    epoch: u64,
}

impl<'a> World<'a> {
    pub(super) fn new(redis: &'a RedisServer, stores: &'a [Store]) -> Self {
        redis.cli(&["FLUSHALL"]);
        Self {
            redis,
            stores,
            session: SessionId::random(),
            owner: Owner::Anonymous,
            alive: [true; REPLICAS],
            holders: Vec::new(),
            submissions: Vec::new(),
            client: Client::new(),
            failovers: 0,
            started_again: false,
            copies: Vec::new(),
            redos: Vec::new(),
            pending: Vec::new(),
            epoch: 0,
        }
    }

    pub(super) async fn step(&mut self, action: &Action) {
        match *action {
            Action::Accept { by, key, fate } if self.alive[by] => self.accept(by, key, fate).await,
            Action::Beside { by, turn, edit, fate } if self.alive[by] => {
                self.accept_beside(by, turn, edit, fate).await;
            }
            Action::Select { turn, question, fate } => self.select(turn, question, fate).await,
            Action::Write { holder, fate } => {
                if let Some(at) = self.active(holder) {
                    self.write(at, fate).await;
                }
            }
            Action::Generate { holder, characters } => {
                if let Some(at) = self.active(holder) {
                    self.holders[at].generate(characters);
                }
            }
            Action::Rewind { holder, share } => {
                if let Some(at) = self.active(holder).filter(|at| !self.holders[*at].ending) {
                    self.holders[at].rewind(share);
                    let generation = self.holders[at].turn.generation;
                    self.submission(generation).rewound = true;
                }
            }
            Action::Finish { holder, fate } => {
                if let Some(at) = self.active(holder).filter(|at| self.holders[*at].is_settled()) {
                    self.finish(at, fate).await;
                }
            }
            Action::Die { replica } => self.alive[replica] = false,
            Action::TakeOver { by, suspicion } if self.alive[by] => {
                self.take_over(by, suspicion).await;
            }
            Action::Cancel { heard, fate } => self.cancel(heard, fate).await,
            Action::Clear { delete, heard, fate } => self.clear(delete, heard, fate).await,
            Action::Transfer { fate } => self.transfer(fate).await,
            Action::InSync => self.redis.remember(),
            Action::Failover => self.fail_over(),
            Action::Redo { which } if !self.pending.is_empty() => {
                let at = self.pending.swap_remove(which % self.pending.len());
                self.redo(at).await;
            }
            Action::Read => self.read(false).await,
            _ => {}
        }
    }

    /// Returns the position of a holder that is still active, if there is one.
    fn active(&self, number: usize) -> Option<usize> {
        let active: Vec<_> =
            (0..self.holders.len()).filter(|at| self.is_active(&self.holders[*at])).collect();
        (!active.is_empty()).then(|| active[number % active.len()])
    }

    fn is_active(&self, holder: &Holder) -> bool {
        self.alive[holder.replica] && !holder.stopped && !holder.finished
    }

    fn submission(&mut self, generation: GenerationId) -> &mut SubmittedTurn {
        let at = self.order_of(generation);
        &mut self.submissions[at]
    }

    /// Returns the number of turns that were accepted before this one.
    fn order_of(&self, generation: GenerationId) -> usize {
        let known = self.submissions.iter().position(|turn| turn.generation == generation);
        known.expect("a generation that was accepted")
    }

    async fn accept(&mut self, by: usize, key: Option<u8>, fate: Fate) {
        // A repeat with the same key is the same request.
        let number = key.map_or(self.submissions.len(), usize::from);
        let question = format!("<question {}{number}>", if key.is_some() { "of key " } else { "" });
        let spec = TurnSpec::least("m", 1);
        let new = NewTurn {
            key: key.map(|key| IdempotencyKey { key: key.to_string(), body: "body".to_owned() }),
            ..NewTurn::of_text(spec, question.clone())
        };
        self.propose(by, &new, (question, key), fate).await;
    }

    /// Submits a turn beside the question or the answer of an earlier one.
    async fn accept_beside(&mut self, by: usize, turn: usize, edit: bool, fate: Fate) {
        let Some(id) = self.message_of(turn, edit) else { return };
        let number = self.submissions.len();
        let (mut anchor, mut asked) = (Anchor::BesideQuestion(id), None);
        let mut question = format!("<question {number} by edit>");
        if !edit {
            anchor = Anchor::BesideAnswer(id);
            let Some(answer) = self.find(by, id).await else { return };
            let Some(parent) = answer.parent_id else { return };
            let Some(known) = self.find(by, parent).await else { return };
            asked = Some(Box::new(known));
            // The text is that of another turn.
            question = String::new();
        }
        let content =
            asked.as_ref().map_or_else(|| question.clone(), |asked| asked.content.clone());
        let new = NewTurn {
            spec: TurnSpec { anchor: Some(anchor), ..TurnSpec::least("m", 1) },
            content,
            conversation: None,
            attached: Attached { question: asked, ..Attached::default() },
            key: None,
        };
        self.propose(by, &new, (question, None), fate).await;
    }

    /// Returns the identifier of the answer or the question of a turn.
    fn message_of(&self, turn: usize, question: bool) -> Option<Uuid> {
        let turns = self.submissions.len();
        let turn = (turns > 0).then(|| &self.submissions[turn % turns])?;
        Some(Uuid::from_u128(turn.generation.0.as_u128() ^ u128::from(question)))
    }

    async fn find(&self, by: usize, id: Uuid) -> Option<Message> {
        let found = self.stores[by].find_message(&self.owner, self.session, id).await;
        found.ok().flatten().map(|found| found.message)
    }

    async fn select(&mut self, turn: usize, question: bool, fate: Fate) {
        let Some(id) = self.message_of(turn, question) else { return };
        let mut selection = Selection::new(&self.owner, self.session, id);
        let store = &self.stores[0];
        if !store.select(&mut selection).await.unwrap_or(false) {
            return;
        }
        if !matches!(fate, Fate::Done) {
            selection = Selection::new(&self.owner, self.session, id);
            let again = store.select(&mut selection).await;
            assert!(!again.expect("a repeat"), "a repeat selects nothing");
        }
        self.redos.push(Redo::Select(selection));
    }

    async fn propose(
        &mut self,
        by: usize,
        new: &NewTurn,
        (question, key): (String, Option<u8>),
        fate: Fate,
    ) {
        let proposal = Proposal::new(&self.owner, self.session, new);
        let was_there = self.redis.cli(&["EXISTS", &channel(self.session)]).trim() == "1";
        let Ok(accepted) = self.stores[by].accept(&proposal).await else { return };
        self.started_again |= self.owner != Owner::Anonymous && !was_there;
        let first_of_key = self.submissions.iter().find(|turn| turn.key == key && key.is_some());
        let (turn, began) = match accepted {
            Acceptance::New { turn, began, .. } => (turn, began),
            Acceptance::Same { generation, .. } => {
                let first = first_of_key.expect("a key that was used before");
                assert_eq!(generation, first.generation, "one key, one generation");
                return;
            }
        };
        if let Some(first) = first_of_key {
            assert_eq!(turn.generation, first.generation, "one key, one generation");
            assert!(self.failovers > 0, "a repeat was accepted as a new turn");
        }
        if let Fate::Twice = fate {
            match self.stores[by].accept(&proposal).await {
                Ok(Acceptance::New { turn: again, began: began_again, .. }) => {
                    assert_eq!((again.fence, began_again), (turn.fence, began), "the same reply");
                }
                other => panic!("a repeat after a lost reply is not accepted: {other:?}"),
            }
        }
        let stored_epoch = self.stored_epoch();
        let submission = SubmittedTurn {
            generation: turn.generation,
            key,
            question,
            acknowledged: !matches!(fate, Fate::ReplyLost),
            before_redo: stored_epoch < self.epoch,
            anonymous: self.owner == Owner::Anonymous,
            cleared: false,
            deleted: false,
            cancelled: false,
            written_after_cancel: false,
            ended_after_cancel: false,
            rewound: false,
            enders: Vec::new(),
        };
        self.epoch = self.epoch.max(stored_epoch);
        match self.submissions.iter_mut().find(|turn| turn.generation == submission.generation) {
            // A failover lost the turn, and its client was faster than its holder.
            Some(known) => {
                known.before_redo |= submission.before_redo || known.cleared;
                if known.cleared {
                    // The turn ended with the clear, and is a turn of another epoch now.
                    self.client.ended.remove(&known.generation);
                }
                (known.cleared, known.deleted) = (false, false);
                // Without a reply to its last request the client, or the replica for it, repeats it.
                known.acknowledged = submission.acknowledged;
            }
            None => self.submissions.push(submission),
        }
        if !matches!(fate, Fate::ReplyLost) {
            let state =
                if began { WriterState::after(String::new()) } else { WriterState::waiting() };
            self.hold(by, turn, state);
        }
    }

    fn hold(&mut self, by: usize, turn: Arc<Turn>, state: WriterState) {
        // Two bytes each, so that no offset is a count of characters by chance.
        if by > 0 {
            self.copies.push(SentCopy { sender: by, turn: TurnCopy::of(&turn), end: None });
        }
        let letter = char::from_u32(0x430 + self.holders.len() as u32 % 32).unwrap_or('x');
        let reasons = self.order_of(turn.generation).is_multiple_of(2);
        self.holders.push(Holder::new(by, turn, state, letter, reasons));
    }

    async fn write(&mut self, at: usize, fate: Fate) {
        let holder = &mut self.holders[at];
        holder.write(&self.stores[holder.replica], fate).await;
        let (generation, failovers) = (holder.turn.generation, self.failovers);
        let turn = self.submission(generation);
        turn.written_after_cancel |= turn.cancelled && failovers > 0;
        self.claim_for_end(at).await;
    }

    async fn finish(&mut self, at: usize, fate: Fate) {
        let holder = &mut self.holders[at];
        if holder.finish(&self.stores[holder.replica], fate).await {
            let generation = holder.turn.generation;
            let failovers = self.failovers;
            let turn = self.submission(generation);
            if !turn.enders.contains(&at) {
                turn.enders.push(at);
            }
            turn.ended_after_cancel |= turn.cancelled;
            let is_alone = turn.enders.len() == 1 && !turn.ended_after_cancel;
            assert!(is_alone || failovers > 0, "a turn ended twice");
        }
        let holder = &self.holders[at];
        if holder.finished && holder.replica > 0 {
            let end = Some((holder.state.text().to_owned(), holder.end.clone()));
            let (sender, turn) = (holder.replica, TurnCopy::of(&holder.turn));
            self.copies.push(SentCopy { sender, turn, end });
        }
        self.claim_for_end(at).await;
    }

    /// Claims the turn for a holder whose end a failover lost, where another replica holds it.
    async fn claim_for_end(&mut self, at: usize) {
        let holder = &mut self.holders[at];
        if !(holder.stopped && holder.has_ended && holder.claims < CLAIMS) {
            return;
        }
        holder.claims += 1;
        let (store, replica) = (&self.stores[holder.replica], holder.replica);
        let open = store.open_turn(&holder.turn).await.expect("the open turns");
        let Some(open) = open else { return };
        let (turn, is_running) = match store.claim(&ClaimAttempt::new(open)).await.expect("a claim")
        {
            Claim::Running(turn, _) => (turn, true),
            Claim::Waiting(turn) => (turn, false),
            Claim::Other => return,
        };
        if turn.epoch == holder.turn.epoch {
            holder.take(turn, is_running);
            return;
        }
        self.hold_claimed(replica, turn, is_running).await;
    }

    /// Restores at replica 0, on behalf of dead replicas, what only their copies may have.
    async fn restore(&mut self) {
        let alive = self.alive;
        let copies = std::mem::take(&mut self.copies);
        let (copies, left) = copies.into_iter().partition(|copy: &SentCopy| !alive[copy.sender]);
        self.copies = left;
        let (ended, open): (Vec<SentCopy>, Vec<SentCopy>) =
            Vec::into_iter(copies).partition(|copy| copy.end.is_some());
        let is_open = |copy: &SentCopy| {
            !ended.iter().any(|other| {
                (other.sender, other.turn.generation) == (copy.sender, copy.turn.generation)
            })
        };
        let open: Vec<SentCopy> = open.into_iter().filter(is_open).collect();
        for SentCopy { turn, end, .. } in ended {
            let turn = Arc::new(turn.restore().expect("a copy"));
            let Some((text, end)) = end else { continue };
            self.holders.push(Holder::of_end(0, turn, text, end));
        }
        for SentCopy { turn, .. } in open {
            let turn = Arc::new(turn.restore().expect("a copy"));
            if self.stores[0].open_turn(&turn).await.expect("the open turns").is_some() {
                // It is claimed as every other turn is.
                continue;
            }
            match self.stores[0].restore(&turn).await.expect("a reply") {
                Restored::Gone => {}
                Restored::Waiting => self.hold_claimed(0, turn, false).await,
                Restored::Kept | Restored::Claimed => self.hold_claimed(0, turn, true).await,
            }
        }
    }

    async fn hold_claimed(&mut self, by: usize, turn: Arc<Turn>, is_running: bool) {
        let state = if is_running {
            let stored = self.stores[by].answer_so_far(&turn).await;
            WriterState::after(stored.expect("the answer so far"))
        } else {
            WriterState::waiting()
        };
        self.hold(by, turn, state);
    }

    async fn take_over(&mut self, by: usize, suspicion: bool) {
        if by == 0 {
            self.restore().await;
        }
        let open = self.stores[by].open_turns(bucket(self.session)).await;
        let mut open = open.expect("the open turns");
        open.sort_by_key(|turn| self.order_of(turn.generation));
        for turn in open {
            let holder = self.stores.iter().position(|store| store.replica() == turn.replica);
            let is_dead = holder.is_none_or(|holder| !self.alive[holder]);
            // A replica also takes over a turn in its own name that it does not run.
            let is_forgotten = holder == Some(by)
                && !self.holders.iter().any(|holder| {
                    holder.turn.generation == turn.generation
                        && holder.replica == by
                        && self.is_active(holder)
                });
            if is_dead || is_forgotten || (suspicion && holder != Some(by)) {
                self.claim(by, turn).await;
            }
        }
    }

    async fn claim(&mut self, by: usize, open: OpenTurn) {
        match self.stores[by].claim(&ClaimAttempt::new(open)).await.expect("a claim") {
            Claim::Running(turn, _) => self.hold_claimed(by, turn, true).await,
            Claim::Waiting(turn) => self.hold_claimed(by, turn, false).await,
            Claim::Other => {}
        }
    }

    async fn cancel(&mut self, heard: bool, fate: Fate) {
        let cancellation = Cancellation::new(&self.owner, self.session, None);
        let store = &self.stores[0];
        let cancelled = |reply: &Result<CancelReply, _>| match reply {
            Ok(CancelReply::Running(id) | CancelReply::Waiting(id)) => Some(*id),
            _ => None,
        };
        let Some(generation) = cancelled(&store.cancel(&cancellation).await) else { return };
        if !matches!(fate, Fate::Done) {
            let again = cancelled(&store.cancel(&cancellation).await);
            assert_eq!(again, Some(generation), "a repeat cancels what the first did");
        }
        self.submission(generation).cancelled = true;
        self.redos.push(Redo::Cancel(cancellation.again(generation)));
        if heard {
            self.stop_holders(&[generation]);
        }
    }

    async fn clear(&mut self, delete: bool, heard: bool, fate: Fate) {
        let mut clearing = Clearing::new(&self.owner, self.session, delete);
        let repeat = clearing.clone();
        let store = &self.stores[0];
        if store.clear(&mut clearing).await.is_err() {
            return;
        }
        if !matches!(fate, Fate::Done) && !delete {
            // After a lost reply, the turns that the clear cancelled are not known.
            clearing = repeat;
            store.clear(&mut clearing).await.expect("a repeat after a lost reply");
        }
        self.epoch = self.epoch.max(self.stored_epoch());
        for turn in &mut self.submissions {
            turn.cleared = true;
            turn.deleted |= delete;
        }
        self.redos.push(Redo::Clear(clearing));
        if heard {
            let all: Vec<_> = self.submissions.iter().map(|turn| turn.generation).collect();
            self.stop_holders(&all);
        }
    }

    async fn transfer(&mut self, fate: Fate) {
        if self.owner != Owner::Anonymous {
            return;
        }
        let user = Owner::User(User::local("alice").expect("a user"));
        let mut transfer = Transfer::new(&user, self.session);
        if self.stores[0].transfer(&mut transfer).await.is_err() {
            return;
        }
        if !matches!(fate, Fate::Done) {
            transfer = Transfer::new(&user, self.session);
            self.stores[0].transfer(&mut transfer).await.expect("a repeat after a lost reply");
        }
        self.owner = user;
        self.redos.push(Redo::Transfer(transfer));
    }

    /// Stops the holders whose replicas received a hint. A holder that is ending its turn learns it
    /// by its next call.
    fn stop_holders(&mut self, generations: &[GenerationId]) {
        let stopped =
            |holder: &&mut Holder| !holder.ending && generations.contains(&holder.turn.generation);
        for holder in self.holders.iter_mut().filter(stopped) {
            holder.stopped = true;
        }
    }

    /// Loses every write since Redis was in sync. Living replicas apply their redos again.
    fn fail_over(&mut self) {
        self.redis.cli(&["SWAPDB", "0", "1"]);
        self.redis.remember();
        self.failovers += 1;
        self.pending = (0..self.redos.len()).collect();
        for holder in &mut self.holders {
            if self.alive[holder.replica] {
                holder.finished = false;
                // Its replica applies the redo entry again.
                holder.stopped &= !holder.has_ended;
                holder.claims = 0;
            }
        }
    }

    async fn redo(&mut self, at: usize) {
        let store = &self.stores[0];
        match &mut self.redos[at] {
            Redo::Cancel(cancellation) => {
                let _ = store.cancel(cancellation).await;
            }
            Redo::Clear(clearing) => {
                let _ = store.clear(clearing).await;
            }
            Redo::Select(selection) => {
                let _ = store.select(selection).await;
            }
            Redo::Transfer(transfer) => {
                let _ = store.transfer(transfer).await;
            }
        }
    }

    async fn read(&mut self, must_recover: bool) {
        let store = &self.stores[0];
        let followed = self.client.read(store, &self.owner, self.session, self.failovers > 0).await;
        if let Followed::Lost = followed {
            // Nothing is left of a turn that had ended before it was cleared.
            let is_cleared = self.submissions.iter().any(|turn| turn.cleared);
            assert!(self.failovers > 0 || is_cleared, "a cursor was lost without a reason");
            if must_recover {
                self.client.start_again(store, &self.owner, self.session).await;
            }
        }
    }

    /// Lets everything end, without more faults.
    pub(super) async fn settle(&mut self) {
        for at in std::mem::take(&mut self.pending) {
            self.redo(at).await;
        }
        for _ in 0..ROUNDS {
            for replica in 0..REPLICAS {
                if self.alive[replica] {
                    self.take_over(replica, false).await;
                }
            }
            let mut is_busy = false;
            for at in 0..self.holders.len() {
                if !self.is_active(&self.holders[at]) {
                    continue;
                }
                is_busy = true;
                self.holders[at].generate(ANSWER);
                self.write(at, Fate::Done).await;
                let holder = &self.holders[at];
                if !holder.stopped && holder.is_settled() {
                    self.finish(at, Fate::Done).await;
                }
            }
            self.read(true).await;
            let session = self.stores[0].describe(&self.owner, self.session).await;
            // If a failover lost the only turn, and that was cancelled, there is no session.
            if !is_busy && session.map_or(true, |session| session.running.is_none()) {
                return;
            }
        }
        self.show();
        panic!("something never ends");
    }

    fn stored_epoch(&self) -> u64 {
        let epoch = self.redis.cli(&["HGET", &channel(self.session), "epoch"]);
        epoch.trim().split_once('-').and_then(|(number, _)| number.parse().ok()).unwrap_or(0)
    }

    /// Returns all messages of all branches with their numbers and those of their parents, oldest first.
    pub(super) fn stored_messages(&self) -> Vec<(u64, u64, Message)> {
        let key = format!("{}:messages", channel(self.session));
        let keys = self.redis.cli(&["HKEYS", &key]);
        let numbers = keys.lines().filter_map(|field| field.trim().parse::<u64>().ok());
        let mut messages: Vec<_> = numbers
            .map(|number| {
                let entry = self.redis.cli(&["HGET", &key, &number.to_string()]);
                let (parent, message) = entry.split_once(' ').expect("a parent");
                let message = message.strip_suffix('\n').unwrap_or(message);
                let message = stored_message::parse(message).expect("a message");
                (number, parent.parse().expect("a number"), message)
            })
            .collect();
        messages.sort_by_key(|(number, ..)| *number);
        messages
    }

    /// Returns the events as they are stored, with the questions in them.
    pub(super) fn stored_events(&self) -> String {
        let events = format!("{}:events", channel(self.session));
        self.redis.cli(&["LRANGE", &events, "0", "-1"])
    }

    /// Prints the state, for the shortest history that fails.
    pub(super) fn show(&self) {
        for (at, holder) in self.holders.iter().enumerate() {
            let flags = [
                (!self.alive[holder.replica], "dead"),
                (holder.stopped, "stopped"),
                (holder.ending, "ending"),
                (holder.finished, "finished"),
            ];
            let flags: Vec<_> = flags.iter().filter(|flag| flag.0).map(|flag| flag.1).collect();
            eprintln!(
                "   holder {at} on replica {}, turn {}: {:?} next {:?} {flags:?}",
                holder.replica,
                self.order_of(holder.turn.generation),
                holder.state.text(),
                holder.state.next_call(),
            );
        }
        let names = |text: String| {
            let turns = self.submissions.iter().map(|turn| turn.generation.to_string());
            turns.enumerate().fold(text, |text, (at, id)| text.replace(&id, &format!("T{at}")))
        };
        for line in names(self.stored_events()).lines().filter(|line| !line.starts_with('{')) {
            eprintln!("   event {line}");
        }
        let key = channel(self.session);
        let answer = self.redis.cli(&["GET", &format!("{key}:answer")]);
        let fields = ["HMGET", &key, "generation", "replica", "revision", "epoch", "deleted"];
        let fields = names(self.redis.cli(&fields));
        eprintln!("   answer {:?}, session {:?}", answer.trim(), fields.trim());
        let Client { cursor, reasoning, text, .. } = &self.client;
        eprintln!("   client {reasoning:?} {text:?} at {}", names(cursor.to_string()));
    }
}
