/* The embedded corpus: short opinions about films, books, meals, hotels and gadgets. Most phrases
 * say what they mean with their words; in the others negation, comparison, contrast, doubt, absence
 * or a wrong report turns the words around. Hedges and intensifiers turn nothing around. As in real
 * text, words are unequally frequent, so the labelled phrases show many of them only a few times.
 *
 *   phrases DIR [--seed N]   writes into DIR, which must exist,
 *     train.tsv validation.tsv test.tsv   labelled phrases, none of them in two files
 *     text/train.txt text/dev.txt         unlabelled text to pre-train on: other opinions, followed
 *                                         by what they made people do
 *     vocab.txt                           every word of it, and letters to spell others
 *
 * The same seed gives the same bytes everywhere: integer arithmetic only.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    TRAIN = 6000,
    VALIDATION = 1000,
    TEST = 2000,
    TEXT = 60000,
    TEXT_DEV = 1000,
    MAX_PHRASE = 500
};

/* ---- words ---- */

#define WORDS(name, ...) static const char *const name[] = {__VA_ARGS__, NULL}

WORDS(good, "good", "great", "funny", "charming", "wonderful", "warm", "clever", "moving",
      "beautiful", "fresh", "excellent", "lovely", "brilliant", "honest", "sharp", "pleasant",
      "perfect", "gripping", "elegant", "impressive", "delightful", "comfortable", "memorable",
      "lively", "witty", "tender", "vivid", "superb", "reliable", "enjoyable", "touching",
      "rewarding", "thrilling", "graceful", "satisfying", "imaginative", "generous", "inspired",
      "refined", "splendid", "polished", "soulful");
WORDS(bad, "bad", "dull", "boring", "awful", "cold", "poor", "predictable", "slow", "terrible",
      "flat", "clumsy", "annoying", "disappointing", "shallow", "messy", "ugly", "bland", "tedious",
      "horrible", "uncomfortable", "forgettable", "lifeless", "lazy", "stale", "broken", "sloppy",
      "crude", "dreadful", "unreliable", "unpleasant", "irritating", "exhausting", "muddled",
      "pointless", "tiresome", "derivative", "stingy", "mawkish", "unimpressive", "dismal",
      "hollow", "joyless");
WORDS(merits, "charm", "wit", "warmth", "skill", "care", "taste", "heart", "grace", "ideas",
      "energy", "depth", "flair");
WORDS(faults, "mistakes", "holes", "noise", "cliches", "padding", "gloom", "fuss", "gaps",
      "nonsense", "flaws", "filler", "dead spots");
WORDS(intensifiers, "very", "really", "so", "truly", "quite", "rather", "deeply", "utterly",
      "remarkably", "incredibly", "thoroughly", "plainly");
WORDS(hedges, "i think", "perhaps", "in a way", "i suppose", "to be fair ,", "honestly ,",
      "at times", "in my view", "they say", "it seems to me that", "for what it is worth ,",
      "as far as i can tell ,");
WORDS(states, "is", "was", "feels", "seems", "looks", "remains", "turns out", "stays");
WORDS(negations, "is not", "was not", "is never", "is hardly", "is far from", "does not feel",
      "is no longer", "is anything but", "is by no means", "could not be called");
WORDS(presence, "has", "is full of", "shows", "has plenty of", "is rich in", "runs on");
WORDS(absence, "lacks", "has no", "is free of", "is short of", "does without", "has little");
WORDS(links_and, "and", "and also", ";", ", and moreover");
WORDS(links_last, "but", "yet", "; still ,", "however ,", "; in the end", "; all the same");
WORDS(links_first, "although", "though", "even if", "while", "granted that");
WORDS(doubts, "nobody could call", "i would not call", "it is wrong to call", "no one finds",
      "only a fool would call", "do not believe those who call");
WORDS(people, "i", "we", "my friends", "the critics", "most people", "the guests", "the children",
      "everyone");
WORDS(nobody, "nobody", "no one", "few people", "hardly anyone");
WORDS(likes, "loved", "enjoyed", "admired", "praised", "cheered", "adored");
WORDS(dislikes, "hated", "regretted", "endured", "mocked", "resented", "suffered through");
WORDS(refusals, "did not", "do not", "could not", "would not");
WORDS(like, "love", "enjoy", "like", "recommend", "admire");
WORDS(dislike, "hate", "dislike", "regret", "mind", "resent");
WORDS(praise_after, "i loved it .", "we stayed until the end .", "i will come back .",
      "go and see for yourself .", "five stars .", "i told all my friends .", "it made my week .",
      "worth every penny .", "i smiled all the way home .", "we want more of it .", "a joy .",
      "highly recommended .");
WORDS(blame_after, "i hated it .", "we left early .", "i will not come back .", "save your money .",
      "one star .", "i warned all my friends .", "it ruined my week .", "a waste of money .",
      "i frowned all the way home .", "we want our money back .", "a pain .", "not recommended .");

/* What an opinion is about: one thing and its parts. */
WORDS(screen, "film", "movie", "series", "episode", "sequel", "documentary", "comedy", "thriller");
WORDS(screen_parts, "plot", "cast", "script", "ending", "acting", "music", "pace", "direction",
      "second half", "photography", "dialogue", "lead actor", "soundtrack", "first act");
WORDS(page, "book", "novel", "story", "poem", "biography", "essay", "memoir");
WORDS(page_parts, "plot", "ending", "style", "opening", "humour", "dialogue", "translation",
      "last chapter", "narrator");
WORDS(table, "meal", "dinner", "restaurant", "lunch", "breakfast", "buffet");
WORDS(table_parts, "soup", "service", "dessert", "wine", "fish", "bread", "waiter", "menu",
      "coffee");
WORDS(stay, "hotel", "room", "garden", "museum", "tour", "lecture", "exhibition");
WORDS(stay_parts, "service", "view", "guide", "bed", "staff", "lobby", "cafe", "location");
WORDS(stage, "show", "concert", "play", "album", "opera", "musical");
WORDS(stage_parts, "music", "staging", "singer", "band", "opening", "second half", "design",
      "choir");
WORDS(device, "game", "phone", "camera", "laptop", "chair", "radio");
WORDS(device_parts, "screen", "keyboard", "design", "battery", "sound", "manual", "software");

typedef struct Topic {
    const char *const *whole, *const *parts;
} Topic;

static const Topic topics[] = {{screen, screen_parts}, {page, page_parts},
                               {table, table_parts},   {stay, stay_parts},
                               {stage, stage_parts},   {device, device_parts}};
enum { TOPICS = sizeof topics / sizeof *topics };

/* ---- random numbers: splitmix64 (Steele, Lea and Flood, 2014) ---- */

static uint64_t state;

static uint64_t next(void) {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static unsigned below(unsigned n) {
    return (unsigned)(next() >> 32) % n;
}

static bool chance(unsigned percent) {
    return below(100) < percent;
}

/* The least of three: the head of a list is frequent, its tail rare. */
static const char *pick(const char *const *list) {
    unsigned n = 0;
    while (list[n]) n++;
    unsigned a = below(n), b = below(n), c = below(n);
    if (b < a) a = b;
    return list[c < a ? c : a];
}

/* ---- phrases ---- */

typedef struct Text {
    const Topic *topic;
    char s[MAX_PHRASE];
    size_t n;
} Text;

static void add(Text *t, const char *word) {
    int n = snprintf(t->s + t->n, sizeof t->s - t->n, "%s%s", t->n ? " " : "", word);
    if (n < 0 || t->n + (size_t)n >= sizeof t->s) {
        fprintf(stderr, "phrases: a phrase outgrew its buffer\n");
        exit(1);
    }
    t->n += (size_t)n;
}

static const char *quality(bool positive) {
    return pick(positive ? good : bad);
}

static void subject(Text *t) {
    bool whole = chance(55);
    add(t, whole && chance(50) ? "this" : "the");
    add(t, pick(whole ? t->topic->whole : t->topic->parts));
}

/* "the film is very good", "what a dull film" */
static void described(Text *t, bool positive) {
    if (chance(75)) {
        subject(t);
        add(t, pick(states));
        if (chance(35)) add(t, pick(intensifiers));
        add(t, quality(positive));
        return;
    }
    const char *degree = chance(20) ? pick(intensifiers) : NULL, *word = quality(positive);
    const char *next_word = degree ? degree : word;
    bool vowel = strchr("aeiou", next_word[0]) || strcmp(next_word, "honest") == 0;
    add(t, chance(50) ? "what" : "it is");
    add(t, vowel ? "an" : "a");
    if (degree) add(t, degree);
    add(t, word);
    add(t, pick(t->topic->whole));
}

static void denied(Text *t, bool positive) { /* "the film is never dull" */
    subject(t);
    add(t, pick(negations));
    if (chance(15)) add(t, pick(intensifiers));
    add(t, quality(!positive));
}

static void contained(Text *t, bool positive) { /* "the film lacks wit", "this book has flaws" */
    bool there = chance(55);
    subject(t);
    add(t, pick(there ? presence : absence));
    add(t, pick(there == positive ? merits : faults));
}

/* "the critics praised it", "nobody hated it", "i did not enjoy it" */
static void received(Text *t, bool positive) {
    unsigned form = below(100);
    if (form < 50) {
        add(t, pick(people));
        add(t, pick(positive ? likes : dislikes));
    } else if (form < 75) {
        add(t, pick(nobody));
        add(t, pick(positive ? dislikes : likes));
    } else {
        add(t, pick(people));
        add(t, pick(refusals));
        add(t, pick(positive ? dislike : like));
    }
    subject(t);
}

static void compared(Text *t, bool positive) { /* "the film is less dull than good" */
    bool more = chance(50);
    subject(t);
    add(t, pick(states));
    add(t, more ? "more" : "less");
    add(t, quality(more == positive));
    add(t, "than");
    add(t, quality(more != positive));
}

static void doubted(Text *t, bool positive) { /* "nobody could call the film dull" */
    add(t, pick(doubts));
    subject(t);
    add(t, quality(!positive));
}

static void foretold(Text *t, bool positive) { /* "they called it dull , wrongly" */
    bool right = chance(50), called = chance(50);
    add(t, pick(people));
    add(t, called ? "called" : "expected");
    subject(t);
    if (!called) add(t, "to be");
    add(t, quality(right == positive));
    add(t, right ? ", rightly" : ", wrongly");
}

/* A clause of the wanted sentiment. */
static void clause(Text *t, bool positive) {
    static const struct {
        unsigned percent;
        void (*say)(Text *, bool);
    } forms[] = {{60, described}, {14, denied}, {8, contained}, {7, received},
                 {4, compared},   {4, doubted}, {3, foretold}};
    unsigned at = below(100), form = 0;
    if (chance(20)) add(t, pick(hedges));
    while (at >= forms[form].percent) at -= forms[form++].percent;
    forms[form].say(t, positive);
}

/* An opinion: one clause, two that agree, or two of which the stressed one decides. */
static void opinion(Text *t, bool positive) {
    unsigned form = below(100);
    if (form < 45) {
        clause(t, positive);
    } else if (form < 75) {
        clause(t, positive);
        add(t, pick(links_and));
        clause(t, positive);
    } else if (form < 88) {
        clause(t, !positive);
        add(t, pick(links_last));
        clause(t, positive);
    } else {
        add(t, pick(links_first));
        clause(t, !positive);
        add(t, ",");
        clause(t, positive);
    }
}

/* ---- files ---- */

static void fail(const char *path) {
    fprintf(stderr, "phrases: cannot write %s: %s\n", path, strerror(errno));
    exit(1);
}

static void make_folder(const char *dir, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (mkdir(path, 0777) && errno != EEXIST) fail(path);
}

typedef struct Output {
    char path[4096];
    FILE *f;
} Output;

static void create(Output *o, const char *dir, const char *name) {
    snprintf(o->path, sizeof o->path, "%s/%s", dir, name);
    o->f = fopen(o->path, "w");
    if (!o->f) fail(o->path);
}

static void finish(Output *o) {
    bool bad_write = ferror(o->f) != 0;
    if (fclose(o->f) || bad_write) fail(o->path);
}

/* Every phrase written so far, so that no split holds another's: a set of 64-bit hashes with open
 * addressing. */
enum { SEEN = 1 << 18 };
static uint64_t seen[SEEN];

static bool is_new(const char *s) {
    uint64_t h = 0xcbf29ce484222325u;
    for (; *s; s++) h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    if (!h) h = 1;
    for (unsigned at = (unsigned)h % SEEN;; at = (at + 1) % SEEN) {
        if (seen[at] == h) return false;
        if (seen[at]) continue;
        seen[at] = h;
        return true;
    }
}

static void write_labelled(const char *dir, const char *name, int n) {
    Output o;
    create(&o, dir, name);
    fputs("sentence\tlabel\n", o.f);
    for (int i = 0; i < n;) {
        Text t = {.topic = &topics[below(TOPICS)]};
        bool positive = i & 1;
        opinion(&t, positive);
        if (!is_new(t.s)) continue;
        fprintf(o.f, "%s\t%d\n", t.s, positive);
        i++;
    }
    finish(&o);
}

static void write_text(const char *dir, const char *name, int n) {
    Output o;
    create(&o, dir, name);
    for (int i = 0; i < n;) {
        Text t = {.topic = &topics[below(TOPICS)]};
        bool positive = chance(50);
        opinion(&t, positive);
        if (!is_new(t.s)) continue;
        add(&t, ".");
        add(&t, pick(positive ? praise_after : blame_after));
        if (chance(50)) add(&t, pick(positive ? praise_after : blame_after));
        fprintf(o.f, "%s\n", t.s);
        i++;
    }
    finish(&o);
}

/* ---- vocabulary ---- */

static void write_new_words(FILE *f, const char *text) {
    char copy[128], *save;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save))
        if (strlen(w) > 1 && is_new(w)) fprintf(f, "%s\n", w);
}

static void write_list(FILE *f, const char *const *list) {
    for (; *list; list++) write_new_words(f, *list);
}

/* The special tokens, every printable ASCII character but capitals (texts are lower-cased) and
 * every letter and digit inside a word, so that any ASCII text can be spelled; then the words. */
static void write_vocabulary(const char *dir) {
    WORDS(grammar,
          "the this more less than what a an it is to be called expected , rightly wrongly");
    static const char *const *const lists[] = {
        grammar,    good,        bad,       merits,   faults,       intensifiers,
        hedges,     states,      negations, presence, absence,      links_and,
        links_last, links_first, doubts,    people,   nobody,       likes,
        dislikes,   refusals,    like,      dislike,  praise_after, blame_after};
    Output o;
    create(&o, dir, "vocab.txt");
    fputs("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n", o.f);
    for (int c = 33; c < 127; c++)
        if (c < 'A' || c > 'Z') fprintf(o.f, "%c\n", c);
    for (int c = 'a'; c <= 'z'; c++) fprintf(o.f, "##%c\n", c);
    for (int c = '0'; c <= '9'; c++) fprintf(o.f, "##%c\n", c);
    for (size_t l = 0; l < sizeof lists / sizeof *lists; l++) write_list(o.f, lists[l]);
    for (size_t i = 0; i < TOPICS; i++) {
        write_list(o.f, topics[i].whole);
        write_list(o.f, topics[i].parts);
    }
    finish(&o);
}

int main(int argc, char **argv) {
    if (argc != 2 && !(argc == 4 && strcmp(argv[2], "--seed") == 0)) {
        fprintf(stderr, "usage: phrases DIR [--seed N]\n");
        return 2;
    }
    state = argc == 4 ? strtoull(argv[3], NULL, 10) : 42;
    write_labelled(argv[1], "test.tsv", TEST);
    write_labelled(argv[1], "validation.tsv", VALIDATION);
    write_labelled(argv[1], "train.tsv", TRAIN);
    make_folder(argv[1], "text");
    write_text(argv[1], "text/dev.txt", TEXT_DEV);
    write_text(argv[1], "text/train.txt", TEXT);
    write_vocabulary(argv[1]);
    return 0;
}
