package server

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// attribute returns the value of an attribute, and whether there is one.
func attribute(n *html.Node, name string) (string, bool) {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val, true
		}
	}
	return "", false
}

// elements returns the elements of a tree that a function chooses.
func elements(root *html.Node, chosen func(n *html.Node) bool) (all []*html.Node) {
	for n := range root.Descendants() {
		if n.Type == html.ElementNode && chosen(n) {
			all = append(all, n)
		}
	}
	return all
}

// named returns the elements of a name.
func named(root *html.Node, names ...atom.Atom) []*html.Node {
	return elements(root, func(n *html.Node) bool { return slices.Contains(names, n.DataAtom) })
}

// text returns the text of a tree.
func text(root *html.Node) string {
	var out strings.Builder
	for n := range root.Descendants() {
		if n.Type == html.TextNode {
			out.WriteString(n.Data)
		}
	}
	return strings.Join(strings.Fields(out.String()), " ")
}

// links returns the paths that a page links to.
func links(root *html.Node) (all []string) {
	for _, n := range named(root, atom.A) {
		path, _ := attribute(n, "href")
		all = append(all, path)
	}
	return all
}

// htmlDefects returns what is wrong with a page: its landmarks, headings, labels, ids, and code or styles within it.
func htmlDefects(root *html.Node) (defects []string) {
	say := func(format string, args ...any) { defects = append(defects, fmt.Sprintf(format, args...)) }
	for _, name := range []atom.Atom{atom.Main, atom.H1, atom.Title, atom.Header} {
		if n := len(named(root, name)); n != 1 {
			say("%d elements %s", n, name)
		}
	}
	if lang, _ := attribute(named(root, atom.Html)[0], "lang"); lang != "en" {
		say("language %q", lang)
	}
	ids, labels, level := map[string]bool{}, map[string]bool{}, 0
	for n := range root.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		for _, a := range n.Attr {
			if strings.HasPrefix(a.Key, "on") || a.Key == "style" || strings.HasPrefix(strings.ToLower(a.Val), "javascript:") {
				say("<%s %s=%q>", n.Data, a.Key, a.Val)
			}
			if (a.Key == "href" || a.Key == "src" || a.Key == "action") && !strings.HasPrefix(a.Val, "/") && !strings.HasPrefix(a.Val, "#") && n.DataAtom != atom.A {
				say("<%s %s=%q> is not of this server", n.Data, a.Key, a.Val)
			}
		}
		if id, ok := attribute(n, "id"); ok {
			if ids[id] {
				say("two elements have the id %q", id)
			}
			ids[id] = true
		}
		if target, ok := attribute(n, "for"); ok && n.DataAtom == atom.Label {
			labels[target] = true
		}
		if n.DataAtom == atom.Style || n.DataAtom == atom.Script && n.FirstChild != nil {
			say("<%s> with a content", n.Data)
		}
		if len(n.Data) == 2 && n.Data[0] == 'h' && n.Data[1] >= '1' && n.Data[1] <= '6' {
			if now := int(n.Data[1] - '0'); now > level+1 {
				say("h%d follows h%d", now, level)
			} else {
				level = now
			}
		}
	}
	return append(defects, nameDefects(root, ids, labels)...)
}

// nameDefects returns the controls, regions and references without a name.
func nameDefects(root *html.Node, ids, labels map[string]bool) (defects []string) {
	for n := range root.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		for _, name := range []string{"aria-describedby", "aria-labelledby"} {
			value, _ := attribute(n, name)
			for _, id := range strings.Fields(value) {
				if !ids[id] {
					defects = append(defects, fmt.Sprintf("<%s> refers to %q, which is not there", n.Data, id))
				}
			}
		}
		kind, _ := attribute(n, "type")
		id, _ := attribute(n, "id")
		_, label := attribute(n, "aria-label")
		_, by := attribute(n, "aria-labelledby")
		switch n.DataAtom {
		case atom.Input, atom.Textarea, atom.Select:
			if kind != "hidden" && !labels[id] && !label && !by {
				defects = append(defects, fmt.Sprintf("<%s id=%q> has no label", n.Data, id))
			}
		case atom.Nav:
			if !label && !by {
				defects = append(defects, "a <nav> without a label")
			}
		case atom.Button, atom.A:
			if text(n) == "" && !label {
				defects = append(defects, fmt.Sprintf("an empty <%s>", n.Data))
			}
		}
		if role, _ := attribute(n, "role"); role == "region" && !label && !by {
			defects = append(defects, "a region without a label")
		}
	}
	return defects
}
