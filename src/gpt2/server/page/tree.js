// Texts that begin alike share their beginning: a tree whose nodes hold tokens. It knows nothing of pages or servers.
//
// A token is {id, by, logprob}: `by` is "you", "model" or "pick" (an alternative that was chosen); `logprob` is the natural
// log-probability under the model, or undefined where nobody has asked yet, or null for the first token of a document.

let count = 0;

export class Node {
  constructor(parent, tokens = [], facts = null) {
    this.key = `n${++count}`;
    this.parent = parent;
    this.tokens = tokens;
    this.children = [];
    this.facts = facts; // how it was written: {model, settings, seed}, or null
    this.name = "";
    this.last = null; // the child that was looked at last
  }

  /** From the first node below the root to this one. */
  get path() {
    const path = [];
    for (let node = this; node.parent; node = node.parent) path.unshift(node);
    return path;
  }

  /** Where this node's text goes on, along what was looked at last. */
  get leaf() {
    let node = this;
    while (node.children.length) node = node.last ?? node.children[node.children.length - 1];
    return node;
  }

  /** All tokens from the beginning. */
  get text() {
    return this.path.flatMap((node) => node.tokens);
  }

  add(tokens, facts) {
    const child = new Node(this, tokens, facts);
    this.children.push(child);
    return child;
  }

  /** Cut in two: this node keeps `length` tokens, and gets the rest as its only child. */
  split(length) {
    const rest = new Node(this, this.tokens.splice(length), this.facts);
    rest.children = this.children;
    for (const child of rest.children) child.parent = rest;
    rest.last = this.last;
    rest.name = this.name;
    this.name = "";
    this.children = [rest];
    this.last = rest;
    return rest;
  }

  /** Take back the one child, where nothing tells them apart. */
  join() {
    const [child] = this.children;
    if (!this.parent || this.children.length !== 1 || this.name || child.facts !== this.facts) return;
    if (this.tokens.at(-1)?.by !== child.tokens[0]?.by) return;
    this.tokens.push(...child.tokens);
    this.children = child.children;
    for (const grandchild of this.children) grandchild.parent = this;
    this.last = child.last;
    this.name = child.name;
    return child;
  }
}

export class Tree {
  constructor() {
    this.root = new Node(null);
    this.current = this.root; // the end of the text that is shown
  }

  get tokens() {
    return this.current.text;
  }

  /** Show the text that ends in a node. */
  show(node) {
    this.current = node;
    for (let each = node; each.parent; each = each.parent) each.parent.last = each;
    return node;
  }

  /** The node in which these tokens end, made where there is none. What is new of `logprob` is taken over. */
  at(tokens, facts = null) {
    let node = this.root;
    let used = 0; // tokens of `node`
    for (let n = 0; n < tokens.length; n++) {
      if (used === node.tokens.length) {
        const child = node.children.find((each) => each.tokens[0]?.id === tokens[n].id);
        if (!child) return this.show(node.add(tokens.slice(n), facts));
        node = child;
        used = 0;
      }
      if (node.tokens[used].id !== tokens[n].id) {
        node.split(used);
        return this.show(node.add(tokens.slice(n), facts));
      }
      if (node.tokens[used].logprob === undefined) node.tokens[used].logprob = tokens[n].logprob;
      used++;
    }
    if (used < node.tokens.length) node.split(used);
    return this.show(node);
  }

  /** The branches that can be taken instead of the last one taken on the way to what is shown. */
  get siblings() {
    for (let node = this.current; node.parent; node = node.parent) {
      if (node.parent.children.length > 1) return { all: node.parent.children, index: node.parent.children.indexOf(node) };
    }
    return { all: [], index: -1 };
  }

  remove(node) {
    const { parent } = node;
    parent.children = parent.children.filter((each) => each !== node);
    if (parent.last === node) parent.last = parent.children.at(-1) ?? null;
    const joined = parent.join();
    if (this.current === joined) this.show(parent);
    else if (!this.has(this.current)) this.show(parent.leaf);
  }

  has(node) {
    for (; node.parent; node = node.parent) if (!node.parent.children.includes(node)) return false;
    return node === this.root;
  }

  /** As plain values, for JSON. */
  get value() {
    const plain = (node) => ({
      ...(node.name && { name: node.name }),
      ...(node.facts && { facts: node.facts }),
      ...(node === this.current && { current: true }),
      tokens: node.tokens.map(({ id, by, logprob }) => (logprob == null ? { id, by } : { id, by, logprob })),
      children: node.children.map(plain),
    });
    return plain(this.root);
  }

  /** From plain values, which may come from anywhere. Throws where they are not what `value` gives. */
  static from(value, vocabulary) {
    const tree = new Tree();
    let tokens = 0;
    const read = (node, given, depth) => {
      if (typeof given !== "object" || given === null || depth > 2000) throw new Error("no tree of texts");
      if (!Array.isArray(given.tokens) || !Array.isArray(given.children ?? [])) throw new Error("no tree of texts");
      tokens += given.tokens.length;
      if (tokens > 200_000) throw new Error("more than 200,000 tokens");
      node.tokens = given.tokens.map((token) => readToken(token, vocabulary));
      node.name = typeof given.name === "string" ? given.name.slice(0, 60) : "";
      node.facts = typeof given.facts === "object" ? given.facts : null;
      if (given.current === true) tree.current = node;
      for (const child of given.children ?? []) read(node.add([]), child, depth + 1);
      if (depth && !node.tokens.length) throw new Error("a branch without tokens");
    };
    read(tree.root, value, 0);
    if (tree.root.tokens.length) throw new Error("no tree of texts");
    tree.show(tree.current === tree.root ? tree.root.leaf : tree.current);
    return tree;
  }
}

function readToken(given, vocabulary) {
  const { id, by, logprob } = given ?? {};
  if (!Number.isInteger(id) || id < 0 || id >= vocabulary.size) throw new Error(`no token of this model: ${id}`);
  const token = { id, by: ["you", "model", "pick"].includes(by) ? by : "you" };
  if (typeof logprob === "number" && logprob <= 1e-3) token.logprob = logprob;
  return token;
}
