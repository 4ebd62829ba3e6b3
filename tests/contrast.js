// Returns [contrast, text, tag and classes] of every visible text of a page, the lowest contrast first, as WCAG defines
// it: (L1 + 0.05) / (L2 + 0.05) of the relative luminances of a text and of what is painted behind it.
const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});

// A CSS colour as red, green, blue (0 to 255) and opacity (0 to 1).
function parse(color) {
  context.clearRect(0, 0, 1, 1);
  context.fillStyle = color;
  context.fillRect(0, 0, 1, 1);
  const [red, green, blue, alpha] = context.getImageData(0, 0, 1, 1).data;
  return [red, green, blue, alpha / 255];
}

function paint(top, below) {
  return [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
}

function luminance(color) {
  const [red, green, blue] = color.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function ancestors(element) {
  return element ? [element, ...ancestors(element.parentElement)] : [];
}

function background(element) {
  return ancestors(element)
    .map((each) => parse(getComputedStyle(each).backgroundColor))
    .reverse()
    .reduce((below, layer) => paint(layer, below), [255, 255, 255]);
}

function contrast(element, color) {
  const behind = background(element);
  const opacity = ancestors(element).reduce((product, each) => product * getComputedStyle(each).opacity, 1);
  const [red, green, blue, alpha] = parse(color);
  const shown = luminance(paint([red, green, blue, alpha * opacity], behind));
  const ground = luminance(behind);
  return (Math.max(shown, ground) + 0.05) / (Math.min(shown, ground) + 0.05);
}

const found = [];
for (const element of document.querySelectorAll("body *")) {
  const {width, height} = element.getBoundingClientRect();
  // What an opacity of 0 hides is not meant to be read: labels of an axis that would lie on each other.
  if (width < 2 || height < 2 || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
  const style = getComputedStyle(element);
  const add = (text, color) => {
    if (text.trim()) found.push([contrast(element, color), text.trim(), `${element.tagName} ${element.getAttribute("class")}`]);
  };
  if (["INPUT", "TEXTAREA"].includes(element.tagName)) {
    if (["range", "radio", "checkbox"].includes(element.type)) continue;
    add(element.value, style.color);
    add(element.placeholder, getComputedStyle(element, "::placeholder").color);
  } else if (!["SCRIPT", "STYLE"].includes(element.tagName)) {
    const own = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE);
    add(own.map((node) => node.textContent).join(" "), element instanceof SVGElement ? style.fill : style.color);
  }
}
return found.sort((one, other) => one[0] - other[0]);
