package consoletest

import (
	"bytes"
	"cmp"
	"image"
	"image/color"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"hsmsign/internal/testkit"
)

// picturesVariable names the folder into which the tests write a picture of every page; make screenshots sets it.
const picturesVariable = "HSMSIGN_SCREENSHOTS"

// everyLook audits the page that the tab shows in both themes and at both widths: axe-core finds nothing, and nothing is wider than the
// window. If somebody has asked for pictures, it is each theme at each width, and it writes the pictures NAME-THEME-WIDTH.png.
func (b *tab) everyLook(name string) {
	b.Helper()
	for width, themes := range map[int64][]string{wide: {light}, narrow: {dark}} {
		if os.Getenv(picturesVariable) != "" {
			themes = []string{light, dark}
		}
		for _, theme := range themes {
			b.look(width, theme)
			what := name + "-" + theme + "-" + strconv.FormatInt(width, 10)
			b.audit(what)
			if got := value(b, chromedp.Evaluate[int64]("document.documentElement.scrollWidth")); got > width {
				b.Errorf("%s: the page is %d pixels wide", what, got)
			}
			b.picture(what)
		}
	}
}

// picture writes a picture of the whole page, if somebody has asked for pictures.
func (b *tab) picture(name string) {
	b.Helper()
	dir := os.Getenv(picturesVariable)
	if dir == "" {
		return
	}
	b.do(chromedp.Evaluate[chromedp.Void]("document.activeElement && document.activeElement.blur()"))
	shot := value(b, chromedp.FullScreenshot(100))
	testkit.OK(b, os.MkdirAll(dir, 0o755)) // #nosec G301 -- pictures of the documentation
	small := smallPNG(b, shot)
	testkit.OK(b, os.WriteFile(filepath.Join(dir, name+".png"), small, 0o644)) // #nosec G306 -- likewise
}

// smallPNG returns a picture with the 256 most frequent colors of another one. The other colors, which are those of the edges of letters,
// become the nearest of them.
func smallPNG(t testing.TB, data []byte) []byte {
	t.Helper()
	source := testkit.Value(png.Decode(bytes.NewReader(data)))(t)
	bounds := source.Bounds()
	count := map[color.RGBA]int{}
	each := func(do func(x, y int, c color.RGBA)) {
		for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
			for x := bounds.Min.X; x < bounds.Max.X; x++ {
				do(x, y, color.RGBAModel.Convert(source.At(x, y)).(color.RGBA))
			}
		}
	}
	each(func(_, _ int, c color.RGBA) { count[c]++ })
	colors := slices.SortedFunc(maps.Keys(count), func(a, b color.RGBA) int {
		return cmp.Or(count[b]-count[a], int(a.R)-int(b.R), int(a.G)-int(b.G), int(a.B)-int(b.B))
	})
	var palette color.Palette
	for _, c := range colors[:min(256, len(colors))] {
		palette = append(palette, c)
	}
	small, index := image.NewPaletted(bounds, palette), map[color.RGBA]uint8{}
	for c := range count {
		index[c] = uint8(palette.Index(c)) // #nosec G115 -- below 256
	}
	each(func(x, y int, c color.RGBA) { small.SetColorIndex(x, y, index[c]) })
	var out bytes.Buffer
	testkit.OK(t, (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, small))
	return out.Bytes()
}

// TestSmallPNG: a picture with many colors has at most 256, and the most frequent ones stay as they are.
func TestSmallPNG(t *testing.T) {
	many := image.NewRGBA(image.Rect(0, 0, 64, 64))
	for i := range 64 * 64 {
		many.SetRGBA(i%64, i/64, color.RGBA{uint8(i), uint8(i / 7), uint8(i / 16), 255}) // #nosec G115 -- any color does
	}
	for i := range 64 { // the background
		many.SetRGBA(i, 0, color.RGBA{250, 251, 252, 255})
	}
	var source bytes.Buffer
	testkit.OK(t, png.Encode(&source, many))
	small := testkit.Value(png.Decode(bytes.NewReader(smallPNG(t, source.Bytes()))))(t)
	p, ok := small.(*image.Paletted)
	if r, g, b, _ := small.At(0, 0).RGBA(); !ok || len(p.Palette) < 16 || r>>8 != 250 || g>>8 != 251 || b>>8 != 252 {
		t.Errorf("%T, the first pixel is %v", small, small.At(0, 0))
	}
	if strings.Contains(source.String(), "PLTE") {
		t.Error("the source has a palette already")
	}
}
