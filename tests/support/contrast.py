"""Whether what a page shows can be read, measured in the browser."""

_FAINT = """() => {
  const parts = (color) => color.match(/[0-9.]+/g).map(Number);
  const light = (color) => color.slice(0, 3)
    .map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const [red, green, blue, share = 1] = parts(getComputedStyle(element).backgroundColor);
    if (share === 1) return [red, green, blue];
    return behind(element.parentElement).map((value, place) => value + share * ([red, green, blue][place] - value));
  };
  const ratio = (color, ground) => {
    const [dark, bright] = [light(parts(color)), light(ground)].sort((first, second) => first - second);
    return (bright + 0.05) / (dark + 0.05);
  };
  const found = [];
  let count = 0;
  for (const element of document.querySelectorAll("body *")) {
    if (!element.checkVisibility() || element.matches(":disabled, :disabled *, option")) continue;
    const style = getComputedStyle(element);
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    if (text || element.matches("input:not([type])")) {
      const size = parseFloat(style.fontSize);
      const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
      count += 1;
      if (ratio(style.color, behind(element)) < (large ? 3 : 4.5)) found.push(`text ${element.className} ${text}`);
    }
    if (element.matches("select, input:not([type])")) {
      if (ratio(style.borderTopColor, behind(element.parentElement)) < 3) found.push(`border of ${element.id}`);
    }
  }
  return [count, found];
}"""
"""How many texts are to be seen, and those with less contrast than WCAG 2.2 AA asks for, borders of fields as well."""


def assert_legible(page) -> None:
    """In the dark and in the light scheme, which stays."""
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        count, faint = page.evaluate(_FAINT)
        assert count > 10 and faint == [], (scheme, faint)
