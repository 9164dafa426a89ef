//! The paths that the code names, read with syn: without tests, with imports in braces and relative paths.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;
use syn::{Attribute, Item, UseTree};

/// The Rust files below a folder, or the file itself.
pub(crate) fn rust_files(below: &Path) -> Vec<PathBuf> {
    if below.is_file() {
        return vec![below.to_path_buf()];
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(below).unwrap_or_else(|error| panic!("{}: {error}", below.display()))
    {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// A file of `src` that is not a test.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// Its module, from the root of the crate: none for `lib.rs`.
    pub(crate) module: Vec<String>,
    /// The paths that it names outside its tests, those of the crate from its root (`["crate", "zmtp", …]`).
    pub(crate) paths: BTreeSet<Vec<String>>,
    /// What it imports from modules below it, each with that module: `Frame` of `pub use frame::Frame`. Files
    /// below name it as an item of this one.
    pub(crate) imports: BTreeMap<String, String>,
}

/// All files below `src` that are not tests.
pub(crate) fn sources(src: &Path) -> Vec<Source> {
    let files = rust_files(src).into_iter().filter(|path| !is_test(path));
    files.map(|path| Source::read(src, path)).collect()
}

/// True for a file of tests alone.
pub(crate) fn is_test(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "tests.rs")
        || path.iter().any(|part| part == "tests")
}

impl Source {
    fn read(src: &Path, path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap();
        let parsed = syn::parse_file(&text);
        let parsed = parsed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let module = module_of(path.strip_prefix(src).unwrap());
        let mut names = Names {
            module: module.clone(),
            paths: BTreeSet::new(),
        };
        names.visit_file(&parsed);
        let mut imports = BTreeMap::new();
        for item in &parsed.items {
            if let Item::Use(used) = item
                && !used.attrs.iter().any(is_for_tests)
            {
                add_imports(&[], &used.tree, &mut imports);
            }
        }
        Source {
            path,
            module,
            paths: names.paths,
            imports,
        }
    }

    /// True when a path that it names begins or ends with these parts.
    pub(crate) fn names(&self, parts: &[&str]) -> bool {
        let parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
        let mut paths = self.paths.iter();
        paths.any(|path| path.starts_with(&parts) || path.ends_with(&parts))
    }
}

/// The names that an import brings into a module, each with the first part of its path.
fn add_imports(before: &[String], tree: &UseTree, imports: &mut BTreeMap<String, String>) {
    let mut add = |name: &syn::Ident| {
        if let Some(from) = before.iter().find(|part| *part != "self") {
            imports.insert(name.to_string(), from.clone());
        }
    };
    match tree {
        UseTree::Path(path) => {
            let before = [before, &[path.ident.to_string()]].concat();
            add_imports(&before, &path.tree, imports);
        }
        UseTree::Name(name) => add(&name.ident),
        UseTree::Rename(name) => add(&name.rename),
        UseTree::Glob(_) => {}
        UseTree::Group(group) => {
            for tree in &group.items {
                add_imports(before, tree, imports);
            }
        }
    }
}

/// `zmtp/curve/mod.rs` is `zmtp::curve`; programs (`bin/x.rs`) are modules, too.
fn module_of(file: &Path) -> Vec<String> {
    let parts = file.with_extension("");
    let parts = parts.iter().map(|part| part.to_string_lossy().into_owned());
    let mut parts: Vec<String> = parts.collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib")) {
        parts.pop();
    }
    parts
}

struct Names {
    module: Vec<String>,
    paths: BTreeSet<Vec<String>>,
}

impl Names {
    /// A path as it is written, resolved where it begins with `crate`, `self` or `super`.
    fn add(&mut self, written: &[String]) {
        let mut parts = written.iter().peekable();
        let mut base = match parts.peek().map(|part| part.as_str()) {
            Some("crate") => {
                parts.next();
                vec!["crate".to_owned()]
            }
            Some("self" | "super") => {
                let mut module = self.module.clone();
                while let Some(part) =
                    parts.next_if(|part| matches!(part.as_str(), "self" | "super"))
                {
                    if part == "super" {
                        module.pop();
                    }
                }
                module.insert(0, "crate".to_owned());
                module
            }
            _ => Vec::new(),
        };
        base.extend(parts.cloned());
        if base.len() > 1 {
            self.paths.insert(base);
        }
    }

    fn add_tree(&mut self, before: &[String], tree: &UseTree) {
        let with = |ident: &syn::Ident| {
            let mut path = before.to_vec();
            path.push(ident.to_string());
            path
        };
        match tree {
            UseTree::Path(path) => self.add_tree(&with(&path.ident), &path.tree),
            UseTree::Name(name) if name.ident == "self" => self.add(before),
            UseTree::Name(name) => self.add(&with(&name.ident)),
            UseTree::Rename(name) if name.ident == "self" => self.add(before),
            UseTree::Rename(name) => self.add(&with(&name.ident)),
            UseTree::Glob(_) => self.add(before),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_tree(before, tree);
                }
            }
        }
    }

    /// Paths in the arguments of a macro, which syn does not parse.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.add(&std::mem::take(&mut path));
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.add(&std::mem::take(&mut path));
                    self.add_tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.add(&std::mem::take(&mut path));
                }
            }
        }
        self.add(&path);
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item(&mut self, item: &'ast Item) {
        if attributes(item).iter().any(is_for_tests) {
            return;
        }
        match item {
            Item::Mod(inline) if inline.content.is_some() => {
                self.module.push(inline.ident.to_string());
                syn::visit::visit_item(self, item);
                self.module.pop();
            }
            Item::Use(used) => self.add_tree(&[], &used.tree),
            _ => syn::visit::visit_item(self, item),
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !item.attrs.iter().any(is_for_tests) {
            syn::visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts = path.segments.iter().map(|part| part.ident.to_string());
        self.add(&parts.collect::<Vec<_>>());
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        self.add_tokens(called.tokens.clone());
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// `#[cfg(test)]`, or `#[cfg(all(test, …))]`.
fn is_for_tests(attribute: &Attribute) -> bool {
    let Ok(list) = attribute.meta.require_list() else {
        return false;
    };
    let tokens = list.tokens.to_string().replace(' ', "");
    list.path.is_ident("cfg") && (tokens == "test" || tokens.starts_with("all(test,"))
}
